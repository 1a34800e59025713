#include "worker/model/weight_loader.h"

#include <algorithm>
#include <variant>
#include <vector>

#include "common/base/check.h"
#include "common/base/status_macros.h"
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

absl::Status LoadPart(const PlannedPart& planned, TensorSource& source,
                      WeightSink& sink) {
  if (source.made_up()) {
    ASSIGN_OR_RETURN(const bool made, MakeUp(planned, sink));
    if (made) return absl::OkStatus();
  }
  ASSIGN_OR_RETURN(std::byte* const host,
                   sink.Stage(planned.part.host_bytes()));
  RETURN_IF_ERROR(ReadPart(planned, source, host));
  return sink.Put(planned.part);
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
  for (const PlannedPart& planned :
       PlanWeights(shape, order.names, order.rank, order.state)) {
    RETURN_IF_ERROR(LoadPart(planned, source, sink));
    stats.bytes_written += planned.part.packed_bytes();
    if (progress) {
      progress(std::min(stats.bytes_written, total_bytes), total_bytes);
    }
  }
  RETURN_IF_ERROR(sink.Finish());
  stats.bytes_read = source.bytes_read();
  return stats;
}

}  // namespace moebius
