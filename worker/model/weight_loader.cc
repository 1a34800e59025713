#include "worker/model/weight_loader.h"

#include <algorithm>
#include <variant>
#include <vector>

#include "common/base/check.h"
#include "common/base/status_macros.h"
#include "kernels/thread_pool.h"
#include "worker/model/weight_plan.h"
#include "worker/model/weights.h"

namespace moebius {
namespace {

absl::Status CheckTensors(const LoadOrder& order, TensorSource& source) {
  for (const ExpectedTensor& tensor :
       ExpectedTensors(order.shape, order.names)) {
    RETURN_IF_ERROR(source.Check(tensor.name, tensor.sizes));
  }
  return absl::OkStatus();
}

// The slices of a part, one behind the other.
absl::Status ReadPart(const PlannedPart& planned, TensorSource& source,
                      std::byte* host) {
  if (const auto* vector = std::get_if<VectorPacking>(&planned.part.packing)) {
    return source.ReadFloat(planned.sources[0].name,
                            absl::MakeSpan(reinterpret_cast<float*>(host),
                                           static_cast<size_t>(vector->size)));
  }
  Bf16* next = reinterpret_cast<Bf16*>(host);
  for (const auto& [name, slice] : planned.sources) {
    const size_t size = static_cast<size_t>(slice.num_elements());
    RETURN_IF_ERROR(source.ReadBf16(name, slice, absl::MakeSpan(next, size)));
    next += size;
  }
  return absl::OkStatus();
}

// False: the sink has to be given it.
absl::StatusOr<bool> MakeUp(const PlannedPart& planned, WeightSink& sink) {
  std::vector<MadeUpSlice> slices;
  for (const auto& [name, slice] : planned.sources) {
    slices.push_back({MadeUpSeed(name), slice});
  }
  return sink.MakeUp(planned.part, slices);
}

// As many as the sink takes at once, each read by a thread.
absl::Status LoadParts(absl::Span<const PlannedPart> parts,
                       TensorSource& source, WeightSink& sink,
                       ThreadPool& threads) {
  if (source.made_up()) {
    CHECK(parts.size() == 1);
    ASSIGN_OR_RETURN(const bool made, MakeUp(parts[0], sink));
    if (made) return absl::OkStatus();
  }
  std::vector<std::byte*> hosts;
  for (const PlannedPart& planned : parts) {
    ASSIGN_OR_RETURN(hosts.emplace_back(),
                     sink.Stage(planned.part.host_bytes()));
  }
  std::vector<absl::Status> read(parts.size());
  threads.ParallelFor(static_cast<int>(parts.size()), [&](int i) {
    read[i] = ReadPart(parts[i], source, hosts[i]);
  });
  for (size_t i = 0; i < parts.size(); ++i) {
    RETURN_IF_ERROR(read[i]);
    RETURN_IF_ERROR(sink.Put(parts[i].part));
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<LoadStats> LoadWeights(const LoadOrder& order,
                                      TensorSource& source, WeightSink& sink,
                                      const LoadProgress& progress) {
  const ModelShape& shape = order.shape;
  CHECK(order.rank >= 0 && order.rank < shape.num_ranks);
  CHECK(Validate(order.state, shape.experts).ok());
  RETURN_IF_ERROR(CheckTensors(order, source));
  const int64_t total_bytes =
      PlanDense(shape).size_bytes +
      shape.experts.slot_bytes() * shape.experts.num_moe_layers;
  LoadStats stats;
  const std::vector<PlannedPart> plan =
      PlanWeights(shape, order.names, order.rank, order.state);
  const int at_once = source.made_up() ? 1 : sink.MostStaged();
  ThreadPool threads(at_once - 1);
  for (absl::Span<const PlannedPart> left = plan; !left.empty();) {
    const auto parts =
        left.first(std::min(left.size(), static_cast<size_t>(at_once)));
    left.remove_prefix(parts.size());
    RETURN_IF_ERROR(LoadParts(parts, source, sink, threads));
    for (const PlannedPart& planned : parts) {
      stats.bytes_written += planned.part.packed_bytes();
    }
    if (progress) {
      progress(std::min(stats.bytes_written, total_bytes), total_bytes);
    }
  }
  RETURN_IF_ERROR(sink.Finish());
  stats.bytes_read = source.bytes_read();
  return stats;
}

}  // namespace moebius
