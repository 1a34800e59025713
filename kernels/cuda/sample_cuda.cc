#include <cuda_runtime_api.h>

#include <algorithm>
#include <thread>
#include <vector>

#include "common/base/check.h"
#include "kernels/cuda/highest.h"
#include "kernels/cuda/operators.h"
#include "kernels/thread_pool.h"

namespace moebius {
namespace {

// Memory of the host that GPUs reach and copy to at full speed; null, and
// noted, when there is none.
template <class T>
class Pinned {
 public:
  Pinned() = default;
  Pinned(const Pinned&) = delete;
  Pinned& operator=(const Pinned&) = delete;
  ~Pinned() { cudaFreeHost(data_); }

  T* Reserve(size_t count, CudaFailure* failure) {
    if (count <= room_) return data_;
    cudaFreeHost(data_);
    void* memory = nullptr;
    const cudaError_t error =
        cudaHostAlloc(&memory, count * sizeof(T), cudaHostAllocPortable);
    failure->Note(CudaStatus(error, "memory of the host for logits"));
    if (error != cudaSuccess) cudaGetLastError();
    data_ = static_cast<T*>(memory);
    room_ = memory == nullptr ? 0 : count;
    return data_;
  }

 private:
  T* data_ = nullptr;
  size_t room_ = 0;
};

// Of a thread that samples, for as long as it lives.
struct SampleRoom {
  static constexpr int kMaxThreads = 16;
  static int ExtraThreads() {
    const int cores = static_cast<int>(std::thread::hardware_concurrency());
    return std::clamp(cores, 1, kMaxThreads) - 1;
  }

  Pinned<float> logits;  // of the rows that are wanted here, one by one
  Pinned<HighestPart> parts;
  std::vector<int> rows;  // these rows
  ThreadPool pool{ExtraThreads()};
};

// Whether the highest logit is all that is wanted of a row.
bool WantsHighestAlone(const SampleRow& wanted) {
  return wanted.known < 0 && wanted.logits == nullptr &&
         TakesHighestAlone(*wanted.sampling, wanted.output.size());
}

// As Argmax and AllFinite say.
SampledRow ResultOf(const HighestPart* parts, int count) {
  HighestPart best = parts[0];
  bool finite = true;
  for (int i = 0; i < count; ++i) {
    if (parts[i].value > best.value) best = parts[i];
    finite &= parts[i].finite != 0;
  }
  SampledRow result;
  result.value.token = best.index;
  result.finite = finite;
  return result;
}

// Copies the rows of room.rows, those beside one another at once.
cudaError_t CopyRows(const float* from, ptrdiff_t stride, size_t cols,
                     CUstream_st* stream, const std::vector<int>& rows,
                     float* to) {
  cudaError_t error = cudaSuccess;
  for (size_t i = 0, end = 0; i < rows.size() && error == cudaSuccess;
       i = end) {
    for (end = i + 1; end < rows.size() && rows[end] == rows[end - 1] + 1;) {
      ++end;
    }
    error = cudaMemcpy2DAsync(
        to + i * cols, cols * sizeof(float), from + rows[i] * stride,
        static_cast<size_t>(stride) * sizeof(float), cols * sizeof(float),
        end - i, cudaMemcpyDeviceToHost, stream);
  }
  return error;
}

}  // namespace

template <Numerics N>
void Sample(const Cuda<N>& device, GpuRows<N> logits,
            Given<const Samples<Cuda<N>>&> samples) {
  CHECK(logits.rows == samples.count);
  if (logits.rows == 0 || samples.first == nullptr) return;
  thread_local SampleRoom of_thread;
  SampleRoom& room = of_thread;  // in the pool's threads as well
  const auto cols = static_cast<size_t>(logits.cols);
  const int num_parts = NumHighestParts(logits.cols);
  const auto wanted = [&](int row) -> const SampleRow& {
    return samples.first[row * samples.step];
  };
  room.rows.clear();
  for (int i = 0; i < logits.rows; ++i) {
    if (!WantsHighestAlone(wanted(i))) room.rows.push_back(i);
  }
  float* const on_host =
      room.logits.Reserve(room.rows.size() * cols, device.failure);
  HighestPart* const parts = room.parts.Reserve(
      static_cast<size_t>(logits.rows) * num_parts, device.failure);
  if (parts == nullptr || (on_host == nullptr && !room.rows.empty())) return;
  if (room.rows.size() < static_cast<size_t>(logits.rows)) {
    FindHighestParts(logits.data, logits.stride, logits.rows, logits.cols,
                     parts, device.stream, device.failure);
  }
  cudaError_t error = CopyRows(logits.data, logits.stride, cols, device.stream,
                               room.rows, on_host);
  if (error == cudaSuccess) error = cudaStreamSynchronize(device.stream);
  device.failure->Note(CudaStatus(error, "logits from the GPU"));
  if (error != cudaSuccess) return;
  for (int i = 0; i < logits.rows; ++i) {
    if (!WantsHighestAlone(wanted(i))) continue;
    *wanted(i).result = ResultOf(parts + int64_t{i} * num_parts, num_parts);
  }
  room.pool.ParallelFor(static_cast<int>(room.rows.size()), [&](int i) {
    thread_local Sampler sampler;
    SampleOne(absl::MakeSpan(on_host + static_cast<size_t>(i) * cols, cols),
              wanted(room.rows[static_cast<size_t>(i)]), sampler);
  });
}

template void Sample<Numerics::kExact>(const CudaExact&, View<float, CudaExact>,
                                       const Samples<CudaExact>&);
template void Sample<Numerics::kFast>(const CudaFast&, View<float, CudaFast>,
                                      const Samples<CudaFast>&);

}  // namespace moebius
