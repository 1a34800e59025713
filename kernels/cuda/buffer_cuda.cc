#include <cuda_runtime_api.h>

#include <map>

#include "absl/strings/str_cat.h"
#include "kernels/cuda/buffer.h"
#include "kernels/cuda/failure.h"

namespace moebius {
namespace {

// Sizes of all buffers of this process.
class Allocated {
 public:
  static Allocated& Get() {
    static auto* const allocated = new Allocated;
    return *allocated;
  }
  void Add(void* memory, int64_t size_bytes) {
    const absl::MutexLock lock(&mutex_);
    sizes_bytes_[memory] = size_bytes;
    total_bytes_ += size_bytes;
  }
  void Remove(void* memory) {
    const absl::MutexLock lock(&mutex_);
    const auto found = sizes_bytes_.find(memory);
    if (found == sizes_bytes_.end()) return;
    total_bytes_ -= found->second;
    sizes_bytes_.erase(found);
  }
  int64_t total_bytes() const {
    const absl::MutexLock lock(&mutex_);
    return total_bytes_;
  }

 private:
  mutable absl::Mutex mutex_;
  std::map<void*, int64_t> sizes_bytes_ ABSL_GUARDED_BY(mutex_);
  int64_t total_bytes_ ABSL_GUARDED_BY(mutex_) = 0;
};

}  // namespace

void CudaFailure::Note(const absl::Status& status) {
  if (status.ok()) return;
  const absl::MutexLock lock(&mutex_);
  if (first_.ok()) first_ = status;
}

absl::Status CudaFailure::status() const {
  const absl::MutexLock lock(&mutex_);
  return first_;
}

absl::Status CudaStatus(int code, const char* what) {
  const cudaError_t error = static_cast<cudaError_t>(code);
  if (error == cudaSuccess) return absl::OkStatus();
  const std::string text = absl::StrCat(what, ": ", cudaGetErrorString(error),
                                        " (", cudaGetErrorName(error), ")");
  return error == cudaErrorMemoryAllocation ? absl::ResourceExhaustedError(text)
                                            : absl::InternalError(text);
}

void* AllocateOnGpu(const char* name, int64_t size_bytes,
                    CudaFailure* failure) {
  if (size_bytes <= 0) return nullptr;
  void* memory = nullptr;
  const cudaError_t error =
      cudaMalloc(&memory, static_cast<size_t>(size_bytes));
  if (error == cudaSuccess) {
    Allocated::Get().Add(memory, size_bytes);
    return memory;
  }
  cudaGetLastError();  // it is noted here, and not to be found by a launch
  failure->Note(CudaStatus(
      error, absl::StrCat(size_bytes, " bytes of a GPU for ", name).c_str()));
  return nullptr;
}

void FreeOnGpu(void* memory) {
  if (memory == nullptr) return;
  Allocated::Get().Remove(memory);
  cudaFree(memory);
}

int64_t BytesOnGpu() { return Allocated::Get().total_bytes(); }

void UploadToGpu(const void* from, int64_t size_bytes, void* to,
                 CUstream_st* stream, CudaFailure* failure) {
  if (size_bytes == 0 || to == nullptr) return;
  cudaError_t error = cudaMemcpyAsync(to, from, static_cast<size_t>(size_bytes),
                                      cudaMemcpyHostToDevice, stream);
  if (error == cudaSuccess) error = cudaStreamSynchronize(stream);
  failure->Note(CudaStatus(error, "a copy to the GPU"));
}

}  // namespace moebius
