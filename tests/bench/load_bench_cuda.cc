// How fast a checkpoint comes into a GPU: from files that the page cache has,
// as many parts at a time as the sink takes, and one at a time.
//
//   load_gpu_bench [FOLDER [LAYERS]]
//
// Writes a checkpoint with the sizes of Qwen3-30B-A3B, of 3 layers by default
// (1.3 GB each), into a folder of its own below FOLDER (default: /tmp).
#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "common/base/unique_fd.h"
#include "kernels/cuda/buffer.h"
#include "kernels/cuda/gpu.h"
#include "tests/unit/worker/model/small_model.h"
#include "worker/model/model_shape.h"
#include "worker/model/safetensors.h"
#include "worker/model/weight_loader.h"
#include "worker/model/weight_plan.h"
#include "worker/model/weight_sink_cuda.h"
#include "worker/model/weights.h"

namespace moebius {
namespace {

using Clock = std::chrono::steady_clock;

void Ok(const absl::Status& status) {
  if (status.ok()) return;
  std::fprintf(stderr, "%s\n", status.ToString().c_str());
  std::abort();
}
template <typename T>
T Ok(absl::StatusOr<T> value) {
  Ok(value.status());
  return *std::move(value);
}

ModelShape Shape(int layers) {
  SmallModel model;
  model.hidden_size = 2048;
  model.num_q_heads = 32;
  model.num_kv_heads = 4;
  model.head_dim = 128;
  model.moe_intermediate_size = 768;
  model.num_experts = 128;
  model.experts_per_token = 8;
  model.vocab_size = 16384;
  model.max_positions = 4096;
  model.is_moe_layer.assign(static_cast<size_t>(layers), true);
  return Ok(MakeModelShape(SpecOf(model), 1));
}

void WriteAll(int fd, const char* bytes, int64_t size) {
  while (size > 0) {
    const ssize_t wrote = ::write(fd, bytes, static_cast<size_t>(size));
    if (wrote <= 0) Ok(absl::InternalError("writing the checkpoint"));
    bytes += wrote;
    size -= wrote;
  }
}

// The bytes of its tensors, which are zeros.
int64_t WriteCheckpoint(const ModelShape& shape, const std::string& path) {
  std::vector<std::string> entries;
  int64_t end = 0;
  for (const ExpectedTensor& tensor :
       ExpectedTensors(shape, kSmallModelNames)) {
    const int64_t begin = end;
    int64_t elements = 1;
    for (const int64_t size : tensor.sizes) elements *= size;
    end += elements * int64_t{sizeof(Bf16)};
    entries.push_back(
        absl::StrCat("\"", tensor.name, "\":{\"dtype\":\"BF16\",\"shape\":[",
                     absl::StrJoin(tensor.sizes, ","), "],\"data_offsets\":[",
                     begin, ",", end, "]}"));
  }
  const std::string header =
      absl::StrCat("{", absl::StrJoin(entries, ","), "}");
  const uint64_t header_bytes = header.size();
  const UniqueFd fd(::open(path.c_str(), O_CREAT | O_WRONLY, 0600));
  if (fd.get() < 0) Ok(absl::InternalError(absl::StrCat("opening ", path)));
  WriteAll(fd.get(), reinterpret_cast<const char*>(&header_bytes), 8);
  WriteAll(fd.get(), header.data(), static_cast<int64_t>(header.size()));
  const std::vector<char> zeros(64 << 20);
  for (int64_t left = end; left > 0;) {
    const int64_t now = std::min(left, static_cast<int64_t>(zeros.size()));
    WriteAll(fd.get(), zeros.data(), now);
    left -= now;
  }
  return end;
}

// Takes one part at a time.
class OneAtATime final : public WeightSink {
 public:
  explicit OneAtATime(std::unique_ptr<WeightSink> to) : to_(std::move(to)) {}
  absl::StatusOr<std::byte*> Stage(int64_t size_bytes) override {
    return to_->Stage(size_bytes);
  }
  absl::Status Put(const WeightPart& part) override { return to_->Put(part); }
  absl::Status Finish() override { return to_->Finish(); }

 private:
  const std::unique_ptr<WeightSink> to_;
};

void Main(const std::string& folder, int layers) {
  const ModelShape shape = Shape(layers);
  const std::string own = absl::StrCat(folder, "/load-bench-", ::getpid());
  std::filesystem::create_directory(own);
  const int64_t bytes = WriteCheckpoint(shape, own + "/model.safetensors");
  CudaFailure failure;
  const auto stream = GpuStream::Create(0, &failure);
  const CudaFast device{stream->get(), &failure, 1};
  const Buffer<std::byte, CudaFast> dense(device, "dense",
                                          PlanDense(shape).size_bytes);
  const Buffer<std::byte, CudaFast> experts(device, "experts",
                                            shape.experts.region_bytes());
  Ok(failure.status());
  for (int round = 0; round < 3; ++round) {
    for (const bool one : {false, true}) {
      const auto begin = Clock::now();
      auto sink = MakeGpuWeightSink(dense.data(), experts.data(), 0);
      if (one) sink = std::make_unique<OneAtATime>(std::move(sink));
      const int at_once = sink->MostStaged();
      const auto source = Ok(Checkpoint::Open(own));
      Ok(LoadWeights({shape, kSmallModelNames, 0,
                      ExpertsState::AtHome(ExpertParallel())},
                     *source, *sink)
             .status());
      const double seconds =
          std::chrono::duration<double>(Clock::now() - begin).count();
      std::printf("%.1f GB, %d parts read at once: %.2f s, %.2f GB/s\n",
                  bytes * 1e-9, at_once, seconds, bytes / seconds * 1e-9);
    }
  }
  std::filesystem::remove_all(own);
}

}  // namespace
}  // namespace moebius

int main(int argc, char** argv) {
  moebius::Main(argc > 1 ? argv[1] : "/tmp", argc > 2 ? std::atoi(argv[2]) : 3);
}
