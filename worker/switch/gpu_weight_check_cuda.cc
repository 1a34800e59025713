#include <cuda_runtime_api.h>

#include <algorithm>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/base/status_macros.h"
#include "kernels/cuda/checksum.h"
#include "kernels/cuda/gpu.h"
#include "worker/switch/gpu_weight_check.h"

namespace moebius {
namespace {

constexpr int kBlocksAMultiprocessor = 8;  // of 256 threads: as many as fit
// A check beside steps takes one of so many multiprocessors' worth of blocks.
constexpr int kShareOfCheck = 4;

SlotUnits UnitsOf(const GpuWeightCheckOptions& options,
                  const ExpertsState& state, int layer) {
  const ExpertShape& shape = options.shape;
  const SlotView view =
      ViewOf(shape, state.LayoutOf(shape, layer), options.rank);
  SlotUnits units;
  units.slot =
      options.experts + state.SlotOf(shape, layer) * shape.slot_bytes();
  units.unit_bytes = shape.unit_rows * shape.row_bytes;
  units.block_bytes = shape.block_bytes();
  units.experts_per_block = shape.experts_per_block();
  units.num_experts = view.num_experts;
  units.num_pieces = view.num_pieces;
  units.piece_units = shape.rows_per_block() / shape.unit_rows;
  units.first_expert =
      int64_t{layer} * shape.padded_experts() + view.first_expert;
  units.matrix_units = shape.padded_rows() / shape.unit_rows;
  units.first_unit = view.first_row / shape.unit_rows;
  return units;
}

// What a check writes and reads beside the weights: a sum in memory of the GPU,
// and words of the host's that the GPU reaches.
class CheckWords {
 public:
  CheckWords() = default;
  ~CheckWords() {
    cudaFree(sum_);
    cudaFreeHost(host_);
  }
  CheckWords(const CheckWords&) = delete;
  CheckWords& operator=(const CheckWords&) = delete;

  absl::Status Init() {
    RETURN_IF_ERROR(
        CudaStatus(cudaMalloc(reinterpret_cast<void**>(&sum_), sizeof(*sum_)),
                   "memory of a GPU for a checksum"));
    RETURN_IF_ERROR(
        CudaStatus(cudaHostAlloc(reinterpret_cast<void**>(&host_),
                                 sizeof(*host_), cudaHostAllocMapped),
                   "host memory for a checksum"));
    *host_ = {};
    return CudaStatus(
        cudaHostGetDevicePointer(reinterpret_cast<void**>(&stop_seen_),
                                 &host_->stop, 0),
        "the address of host memory on a GPU");
  }

  uint64_t* sum() const { return sum_; }
  uint64_t* result() const { return &host_->result; }
  void SetStop(bool stop) {
    __atomic_store_n(&host_->stop, stop ? 1u : 0u, __ATOMIC_SEQ_CST);
  }
  const uint32_t* stop_seen() const { return stop_seen_; }  // by the GPU

 private:
  struct Host {
    uint64_t result = 0;
    uint32_t stop = 0;
  };
  uint64_t* sum_ = nullptr;
  Host* host_ = nullptr;
  uint32_t* stop_seen_ = nullptr;
};

// Reads all slots of a state, and copies the sum to words.result().
absl::Status LaunchSum(const GpuWeightCheckOptions& options,
                       const ExpertsState& state, const CheckWords& words,
                       int grid, const GpuStream& stream) {
  RETURN_IF_ERROR(CudaStatus(
      cudaMemsetAsync(words.sum(), 0, sizeof(uint64_t), stream.get()),
      "clearing a checksum"));
  for (int layer = 0; layer < options.shape.num_moe_layers; ++layer) {
    RETURN_IF_ERROR(LaunchUnitChecksums(UnitsOf(options, state, layer), grid,
                                        words.stop_seen(), words.sum(),
                                        stream.get()));
  }
  return CudaStatus(
      cudaMemcpyAsync(words.result(), words.sum(), sizeof(uint64_t),
                      cudaMemcpyDeviceToHost, stream.get()),
      "copying a checksum");
}

absl::Status CheckShape(const ExpertShape& shape) {
  if (shape.unit_rows * shape.row_bytes % int64_t{sizeof(uint64_t)} == 0) {
    return absl::OkStatus();
  }
  return absl::InvalidArgumentError(absl::StrCat(
      "rows of ", shape.row_bytes, " bytes: a GPU takes units of whole words"));
}

class GpuWeightCheck final : public WeightCheck {
 public:
  explicit GpuWeightCheck(const GpuWeightCheckOptions& options)
      : options_(options) {}
  ~GpuWeightCheck() override { GiveUp(); }

  absl::Status Init() {
    RETURN_IF_ERROR(CheckShape(options_.shape));
    RETURN_IF_ERROR(UseGpu(options_.gpu));
    stream_ = GpuStream::Create(options_.gpu, options_.failure,
                                GpuStream::Priority::kLow);
    RETURN_IF_ERROR(options_.failure->status());
    return words_.Init();
  }

  void Begin(Epoch epoch, const ExpertsState& state) override {
    GiveUp();
    if (!Noted(UseGpu(options_.gpu))) return;
    const int grid =
        std::max(1, kBlocksAMultiprocessor * stream_->num_multiprocessors() /
                        kShareOfCheck);
    if (Noted(LaunchSum(options_, state, words_, grid, *stream_))) {
      epoch_ = epoch;
    }
  }

  void GiveUp() override {
    epoch_.reset();
    if (stream_ == nullptr || !Noted(UseGpu(options_.gpu))) return;
    words_.SetStop(true);
    Noted(CudaStatus(cudaStreamSynchronize(stream_->get()),
                     "a check of weights"));
    words_.SetStop(false);
  }

  std::optional<Sum> Take() override {
    if (!epoch_.has_value() || !Noted(UseGpu(options_.gpu))) return {};
    const cudaError_t error = cudaStreamQuery(stream_->get());
    if (error == cudaErrorNotReady) return {};
    const Epoch epoch = *std::exchange(epoch_, std::nullopt);
    if (!Noted(CudaStatus(error, "a check of weights"))) return {};
    return Sum{epoch, *words_.result()};
  }

 private:
  // Whether it is OK; notes it if it is not.
  bool Noted(const absl::Status& status) {
    options_.failure->Note(status);
    return status.ok();
  }

  const GpuWeightCheckOptions options_;
  std::unique_ptr<GpuStream> stream_;
  CheckWords words_;
  std::optional<Epoch> epoch_;  // of what is under way
};

}  // namespace

absl::StatusOr<std::unique_ptr<WeightCheck>> MakeGpuWeightCheck(
    const GpuWeightCheckOptions& options) {
  auto check = std::make_unique<GpuWeightCheck>(options);
  RETURN_IF_ERROR(check->Init());
  return check;
}

absl::StatusOr<uint64_t> GpuWeightChecksum(const GpuWeightCheckOptions& options,
                                           const ExpertsState& state) {
  RETURN_IF_ERROR(CheckShape(options.shape));
  RETURN_IF_ERROR(UseGpu(options.gpu));
  const auto stream = GpuStream::Create(options.gpu, options.failure);
  RETURN_IF_ERROR(options.failure->status());
  CheckWords words;
  RETURN_IF_ERROR(words.Init());
  const int grid = kBlocksAMultiprocessor * stream->num_multiprocessors();
  const absl::Status launched = LaunchSum(options, state, words, grid, *stream);
  RETURN_IF_ERROR(stream->Wait());  // what was launched, in any case
  RETURN_IF_ERROR(launched);
  return *words.result();
}

}  // namespace moebius
