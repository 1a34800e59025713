#include "worker/bench/probe_cuda.h"

#include <cuda_runtime_api.h>

#include <algorithm>
#include <utility>

#include "absl/functional/function_ref.h"
#include "absl/synchronization/notification.h"
#include "absl/time/time.h"
#include "common/base/status_macros.h"
#include "kernels/cuda/copies.h"
#include "kernels/cuda/gpu.h"
#include "kernels/cuda/operators.h"
#include "kernels/cuda/pack.h"
#include "kernels/cuda/workspace.h"

namespace moebius {
namespace {

// What a pass has at most: of kMaxWatched passes these are some megabytes.
constexpr size_t kMaxMarks = 8192;
// The stream waits at the begin of a pass until all of it is launched, or for
// so long: it may be more than the driver lets a stream have before it.
constexpr absl::Duration kHeadStart = absl::Milliseconds(20);

void CUDART_CB WaitAtBegin(void* launched) {
  static_cast<absl::Notification*>(launched)->WaitForNotificationWithTimeout(
      kHeadStart);
}

// An event is made when it is first needed, and kept.
class Events {
 public:
  explicit Events(CudaFailure* failure) : failure_(failure) {}
  ~Events() {
    for (cudaEvent_t event : events_) cudaEventDestroy(event);
  }
  Events(const Events&) = delete;
  Events& operator=(const Events&) = delete;

  void Record(size_t index, cudaStream_t stream) {
    while (events_.size() <= index) {
      cudaEvent_t event = nullptr;
      failure_->Note(CudaStatus(cudaEventCreate(&event), "an event"));
      events_.push_back(event);
    }
    failure_->Note(CudaStatus(cudaEventRecord(events_[index], stream),
                              "the record of an event"));
  }
  // REQUIRES: both have come to pass.
  double MillisecondsBetween(size_t from, size_t to) const {
    float ms = 0;
    failure_->Note(
        CudaStatus(cudaEventElapsedTime(&ms, events_[from], events_[to]),
                   "the time between events"));
    return ms;
  }

 private:
  CudaFailure* const failure_;
  std::vector<cudaEvent_t> events_;
};

// Seconds that the stream takes for each of so many calls. One before them, so
// that the clocks are up and the memory was touched.
template <Numerics N>
absl::StatusOr<double> SecondsOf(const Cuda<N>& device, int calls,
                                 absl::FunctionRef<void()> launch) {
  Events events(device.failure);
  launch();
  events.Record(0, device.stream);
  for (int i = 0; i < calls; ++i) launch();
  events.Record(1, device.stream);
  RETURN_IF_ERROR(CudaStatus(cudaStreamSynchronize(device.stream), "a rate"));
  const double ms = events.MillisecondsBetween(0, 1);
  RETURN_IF_ERROR(device.failure->status());
  return std::max(1e-9, ms / 1000 / calls);
}

template <Numerics N>
absl::StatusOr<CopyRates> CopyRatesOf(const Cuda<N>& device, int gpu) {
  constexpr int64_t kBytes = int64_t{1} << 30;
  constexpr int kCopies = 10, kBlocksOfMultiprocessor = 4;
  RETURN_IF_ERROR(UseGpu(gpu));
  const Buffer<std::byte, Cuda<N>> from(device, "copy", kBytes),
      to(device, "copy", kBytes);
  RETURN_IF_ERROR(device.failure->status());
  CopyRates rates;
  ASSIGN_OR_RETURN(const double by_kernel, SecondsOf(device, kCopies, [&] {
                     device.failure->Note(LaunchCopies(
                         {{from.data(), to.data(), kBytes}},
                         kBlocksOfMultiprocessor * device.num_multiprocessors,
                         device.stream));
                   }));
  rates.kernel = 2.0 * kBytes / by_kernel;
  ASSIGN_OR_RETURN(
      const double by_driver, SecondsOf(device, kCopies, [&] {
        device.failure->Note(
            CudaStatus(cudaMemcpyAsync(to.data(), from.data(), kBytes,
                                       cudaMemcpyDeviceToDevice, device.stream),
                       "a copy"));
      }));
  rates.driver = 2.0 * kBytes / by_driver;
  return rates;
}

template <Numerics N>
class GpuProbe final : public DeviceProbe, private PassObserver<Cuda<N>> {
 public:
  using D = Cuda<N>;
  GpuProbe(const D& device, int gpu, std::string name, Decoder<D>* decoder)
      : device_(device),
        gpu_(gpu),
        name_(std::move(name)),
        decoder_(decoder),
        events_(device.failure) {}
  ~GpuProbe() override {
    decoder_->Observe(nullptr);
    cudaStreamSynchronize(device_.stream);
    cudaFreeHost(begins_);
  }

  std::string device_name() const override { return name_; }
  absl::Status Watch() override;
  absl::StatusOr<PassShares> Take() override;
  absl::StatusOr<CopyRates> MeasureCopies() override {
    return CopyRatesOf(device_, gpu_);
  }
  absl::StatusOr<double> MeasureProducts() override;

 private:
  struct Mark {
    PassPart part = PassPart::kOther;  // of what follows
    int pass = 0;
  };
  // Where the groups of a layer of a pass were put.
  struct Grouped {
    int moe_layer = 0;
    int num_groups = 0;
    size_t at = 0;
  };

  void OnBegin() override;
  void OnPart(PassPart part) override;
  void OnGrouped(int moe_layer, const Routing<D>& routing) override;
  void OnEnd() override {
    OnPart(PassPart::kOther);
    launched_.back()->Notify();
  }

  static constexpr size_t kMaxBegins = size_t{1} << 20;  // 4 MiB, pinned

  const D device_;
  const int gpu_;
  const std::string name_;
  Decoder<D>* const decoder_;
  Events events_;
  std::vector<Mark> marks_;  // [event]
  int passes_ = 0;
  bool is_full_ = false;
  std::vector<std::unique_ptr<absl::Notification>> launched_;  // [pass]
  int32_t* begins_ = nullptr;  // [kMaxBegins], of the groups, one after another
  size_t used_begins_ = 0;
  std::vector<Grouped> grouped_;
};

template <Numerics N>
absl::Status GpuProbe<N>::Watch() {
  RETURN_IF_ERROR(UseGpu(gpu_));
  if (begins_ == nullptr) {
    void* begins = nullptr;
    RETURN_IF_ERROR(
        CudaStatus(cudaHostAlloc(&begins, kMaxBegins * sizeof(int32_t),
                                 cudaHostAllocPortable),
                   "pinned memory for what is watched"));
    begins_ = static_cast<int32_t*>(begins);
  }
  marks_.clear();
  grouped_.clear();
  launched_.clear();
  passes_ = 0;
  used_begins_ = 0;
  is_full_ = false;
  decoder_->Observe(this);
  return absl::OkStatus();
}

template <Numerics N>
void GpuProbe<N>::OnBegin() {
  ++passes_;
  launched_.push_back(std::make_unique<absl::Notification>());
  device_.failure->Note(CudaStatus(
      cudaLaunchHostFunc(device_.stream, &WaitAtBegin, launched_.back().get()),
      "a wait"));
}

template <Numerics N>
void GpuProbe<N>::OnPart(PassPart part) {
  if (marks_.size() == kMaxMarks * kMaxWatched) {
    is_full_ = true;
    return;
  }
  events_.Record(marks_.size(), device_.stream);
  marks_.push_back({part, passes_});
}

template <Numerics N>
void GpuProbe<N>::OnGrouped(int moe_layer, const Routing<D>& routing) {
  OnPart(PassPart::kOther);
  const size_t count = static_cast<size_t>(routing.num_groups) + 1;
  if (used_begins_ + count > kMaxBegins) {
    is_full_ = true;
    return;
  }
  device_.failure->Note(
      CudaStatus(cudaMemcpyAsync(begins_ + used_begins_, routing.begins.data(),
                                 count * sizeof(int32_t),
                                 cudaMemcpyDeviceToHost, device_.stream),
                 "a copy of the groups of a pass"));
  grouped_.push_back({moe_layer, routing.num_groups, used_begins_});
  used_begins_ += count;
}

template <Numerics N>
absl::StatusOr<PassShares> GpuProbe<N>::Take() {
  decoder_->Observe(nullptr);
  RETURN_IF_ERROR(UseGpu(gpu_));
  RETURN_IF_ERROR(CudaStatus(cudaStreamSynchronize(device_.stream),
                             "passes that were watched"));
  RETURN_IF_ERROR(device_.failure->status());
  if (passes_ == 0 || is_full_) {
    return absl::FailedPreconditionError(
        is_full_ ? "more was watched than there is room for"
                 : "no pass was watched");
  }
  PassShares means;
  means.passes = passes_;
  for (size_t i = 0; i + 1 < marks_.size(); ++i) {
    if (marks_[i].part == PassPart::kOther) continue;
    means.part_ms[static_cast<size_t>(marks_[i].part)] +=
        events_.MillisecondsBetween(i, i + 1) / passes_;
  }
  for (const Grouped& grouped : grouped_) {
    const size_t layer = static_cast<size_t>(grouped.moe_layer);
    if (means.experts_named.size() <= layer) {
      means.experts_named.resize(layer + 1);
    }
    const int32_t* begins = begins_ + grouped.at;
    for (int e = 0; e < grouped.num_groups; ++e) {
      if (begins[e + 1] > begins[e]) {
        means.experts_named[layer] += 1.0 / passes_;
      }
    }
  }
  RETURN_IF_ERROR(device_.failure->status());
  return means;
}

template <Numerics N>
absl::StatusOr<double> GpuProbe<N>::MeasureProducts() {
  constexpr int kSize = 8192, kProducts = 5;
  constexpr int64_t kElements = int64_t{kSize} * kSize;
  RETURN_IF_ERROR(UseGpu(gpu_));
  const Buffer<Bf16, D> weights(device_, "weights", kElements);
  const Buffer<float, D> x(device_, "x", kElements), y(device_, "y", kElements);
  RETURN_IF_ERROR(device_.failure->status());
  // Zeros would be multiplied at higher clocks. The order does not matter.
  MakeUpOnGpu({1, kSize, 0, 0, kSize, kSize}, weights.data(), device_.stream,
              device_.failure);
  for (int row = 0; row < kSize; ++row) {
    MakeUpOnGpu(static_cast<uint64_t>(row), kSize,
                x.data() + int64_t{row} * kSize, device_.stream,
                device_.failure);
  }
  const ColumnParallel<D> w{weights.data(), kSize, kSize};
  // That of the passes must not move, or what was captured is void.
  Workspace workspace;
  D device = device_;
  device.workspace = &workspace;
  ASSIGN_OR_RETURN(
      const double seconds, SecondsOf(device, kProducts, [&] {
        Project(device, View<const float, D>{x.data(), kSize, kSize, kSize},
                absl::MakeConstSpan(&w, 1),
                View<float, D>{y.data(), kSize, kSize, kSize});
      }));
  return 2.0 * kElements * kSize / seconds;
}

}  // namespace

template <Numerics N>
absl::StatusOr<std::unique_ptr<DeviceProbe>> MakeGpuProbe(
    const Cuda<N>& device, int gpu, Decoder<Cuda<N>>* decoder) {
  RETURN_IF_ERROR(UseGpu(gpu));
  cudaDeviceProp properties;
  RETURN_IF_ERROR(CudaStatus(cudaGetDeviceProperties(&properties, gpu),
                             "the name of a GPU"));
  return std::make_unique<GpuProbe<N>>(device, gpu, properties.name, decoder);
}

absl::StatusOr<CopyRates> MeasureGpuCopies(int gpu) {
  RETURN_IF_ERROR(UseGpu(gpu));
  CudaFailure failure;
  const auto stream = GpuStream::Create(gpu, &failure);
  return CopyRatesOf(
      CudaFast{stream->get(), &failure, stream->num_multiprocessors()}, gpu);
}

template absl::StatusOr<std::unique_ptr<DeviceProbe>> MakeGpuProbe(
    const CudaExact& device, int gpu, Decoder<CudaExact>* decoder);
template absl::StatusOr<std::unique_ptr<DeviceProbe>> MakeGpuProbe(
    const CudaFast& device, int gpu, Decoder<CudaFast>* decoder);

}  // namespace moebius
