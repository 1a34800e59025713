#include <cuda_runtime_api.h>

#include <algorithm>
#include <thread>

#include "common/base/check.h"
#include "kernels/cuda/operators.h"
#include "kernels/thread_pool.h"

namespace moebius {
namespace {

// Memory of the host to which a GPU copies at full speed; null, and noted,
// when there is none.
class PinnedLogits {
 public:
  PinnedLogits() = default;
  PinnedLogits(const PinnedLogits&) = delete;
  PinnedLogits& operator=(const PinnedLogits&) = delete;
  ~PinnedLogits() { cudaFreeHost(data_); }

  float* Reserve(size_t count, CudaFailure* failure) {
    if (count <= room_) return data_;
    cudaFreeHost(data_);
    void* memory = nullptr;
    const cudaError_t error = cudaMallocHost(&memory, count * sizeof(float));
    failure->Note(CudaStatus(error, "memory of the host for logits"));
    if (error != cudaSuccess) cudaGetLastError();
    data_ = static_cast<float*>(memory);
    room_ = memory == nullptr ? 0 : count;
    return data_;
  }

 private:
  float* data_ = nullptr;
  size_t room_ = 0;
};

// Of a thread that samples, for as long as it lives.
struct SampleRoom {
  static constexpr int kMaxThreads = 16;
  static int ExtraThreads() {
    const int cores = static_cast<int>(std::thread::hardware_concurrency());
    return std::clamp(cores, 1, kMaxThreads) - 1;
  }

  PinnedLogits logits;
  ThreadPool pool{ExtraThreads()};
};

}  // namespace

template <Numerics N>
void Sample(const Cuda<N>& device, GpuRows<N> logits,
            Given<const Samples<Cuda<N>>&> samples) {
  CHECK(logits.rows == samples.count);
  if (logits.rows == 0 || samples.first == nullptr) return;
  thread_local SampleRoom room;
  const auto rows = static_cast<size_t>(logits.rows);
  const auto cols = static_cast<size_t>(logits.cols);
  float* const on_host = room.logits.Reserve(rows * cols, device.failure);
  if (on_host == nullptr) return;
  cudaError_t error = cudaMemcpy2DAsync(
      on_host, cols * sizeof(float), logits.data,
      static_cast<size_t>(logits.stride) * sizeof(float), cols * sizeof(float),
      rows, cudaMemcpyDeviceToHost, device.stream);
  if (error == cudaSuccess) error = cudaStreamSynchronize(device.stream);
  device.failure->Note(CudaStatus(error, "logits from the GPU"));
  if (error != cudaSuccess) return;
  room.pool.ParallelFor(logits.rows, [&](int i) {
    thread_local Sampler sampler;
    SampleOne(absl::MakeSpan(on_host + static_cast<size_t>(i) * cols, cols),
              samples.first[i * samples.step], sampler);
  });
}

template void Sample<Numerics::kExact>(const CudaExact&, View<float, CudaExact>,
                                       const Samples<CudaExact>&);
template void Sample<Numerics::kFast>(const CudaFast&, View<float, CudaFast>,
                                      const Samples<CudaFast>&);

}  // namespace moebius
