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

// What a check has beside the weights.
class CheckWords {
 public:
  CheckWords() = default;
  ~CheckWords() {
    cudaFree(gpu_);
    cudaFreeHost(host_);
  }
  CheckWords(const CheckWords&) = delete;
  CheckWords& operator=(const CheckWords&) = delete;

  absl::Status Init() {
    RETURN_IF_ERROR(
        CudaStatus(cudaMalloc(reinterpret_cast<void**>(&gpu_), sizeof(*gpu_)),
                   "memory of a GPU for a checksum"));
    RETURN_IF_ERROR(
        CudaStatus(cudaHostAlloc(reinterpret_cast<void**>(&host_),
                                 sizeof(*host_), cudaHostAllocDefault),
                   "host memory for a checksum"));
    *host_ = {};
    // Streams that do not wait for the default one read it.
    RETURN_IF_ERROR(
        CudaStatus(cudaMemset(gpu_, 0, sizeof(*gpu_)), "clearing a checksum"));
    return CudaStatus(cudaStreamSynchronize(nullptr), "clearing a checksum");
  }

  absl::Status LaunchClear(const GpuStream& stream) const {
    return CudaStatus(
        cudaMemsetAsync(&gpu_->sum, 0, sizeof(gpu_->sum), stream.get()),
        "clearing a checksum");
  }
  // By a copy engine, so that no kernel can be in its way.
  absl::Status LaunchStop(bool stop, const GpuStream& stream) const {
    return CudaStatus(cudaMemcpyAsync(&gpu_->stop, &host_->stop[stop ? 1 : 0],
                                      sizeof(gpu_->stop),
                                      cudaMemcpyHostToDevice, stream.get()),
                      "stopping a checksum");
  }
  absl::Status LaunchDownload(const GpuStream& stream) const {
    return CudaStatus(
        cudaMemcpyAsync(&host_->sum, &gpu_->sum, sizeof(gpu_->sum),
                        cudaMemcpyDeviceToHost, stream.get()),
        "copying a checksum");
  }

  uint64_t* sum() const { return &gpu_->sum; }
  const uint32_t* stop() const { return &gpu_->stop; }
  uint64_t result() const { return host_->sum; }  // once downloaded

 private:
  struct OnGpu {
    uint64_t sum = 0;
    uint32_t stop = 0;
  };
  struct OnHost {
    uint64_t sum = 0;
    uint32_t stop[2] = {0, 1};  // to copy from
  };
  OnGpu* gpu_ = nullptr;
  OnHost* host_ = nullptr;
};

// Reads all slots of a state, until words.stop() if that is heeded, and
// downloads the sum.
absl::Status LaunchSum(const GpuWeightCheckOptions& options,
                       const ExpertsState& state, const CheckWords& words,
                       bool heed_stop, int grid, const GpuStream& stream) {
  RETURN_IF_ERROR(words.LaunchClear(stream));
  for (int layer = 0; layer < options.shape.num_moe_layers; ++layer) {
    RETURN_IF_ERROR(LaunchUnitChecksums(UnitsOf(options, state, layer), grid,
                                        heed_stop ? words.stop() : nullptr,
                                        words.sum(), stream.get()));
  }
  return words.LaunchDownload(stream);
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
    control_ = GpuStream::Create(options_.gpu, options_.failure);
    RETURN_IF_ERROR(options_.failure->status());
    return words_.Init();
  }

  void Begin(Epoch epoch, const ExpertsState& state) override {
    GiveUp();
    if (!Noted(UseGpu(options_.gpu))) return;
    const int grid =
        std::max(1, kChecksumBlocksAMultiprocessor *
                        stream_->num_multiprocessors() / kShareOfCheck);
    reading_ = epoch;
    Noted(
        LaunchSum(options_, state, words_, /*heed_stop=*/true, grid, *stream_));
  }

  void GiveUp() override {
    if (!reading_.has_value() || !Noted(UseGpu(options_.gpu))) return;
    reading_.reset();
    // Beside the kernels, which look at it.
    Noted(words_.LaunchStop(true, *control_));
    Await(*control_);
    Await(*stream_);
    Noted(words_.LaunchStop(false, *control_));
    Await(*control_);
  }

  std::optional<Sum> Take() override {
    if (!reading_.has_value() || !Noted(UseGpu(options_.gpu))) return {};
    const cudaError_t error = cudaStreamQuery(stream_->get());
    if (error == cudaErrorNotReady) return {};
    const Epoch epoch = *std::exchange(reading_, std::nullopt);
    Noted(CudaStatus(error, "a check of weights"));
    if (!options_.failure->status().ok()) return {};
    return Sum{epoch, words_.result()};
  }

 private:
  // Whether it is OK; notes it if it is not.
  bool Noted(const absl::Status& status) {
    options_.failure->Note(status);
    return status.ok();
  }

  void Await(const GpuStream& stream) {
    Noted(
        CudaStatus(cudaStreamSynchronize(stream.get()), "a check of weights"));
  }

  const GpuWeightCheckOptions options_;
  std::unique_ptr<GpuStream> stream_, control_;
  CheckWords words_;
  std::optional<Epoch> reading_;  // the epoch of what is under way
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
  const int grid =
      kChecksumBlocksAMultiprocessor * stream->num_multiprocessors();
  const absl::Status launched =
      LaunchSum(options, state, words, /*heed_stop=*/false, grid, *stream);
  RETURN_IF_ERROR(stream->Wait());  // what was launched, in any case
  RETURN_IF_ERROR(launched);
  return words.result();
}

}  // namespace moebius
