#include <cuda_runtime_api.h>

#include "absl/strings/str_cat.h"
#include "kernels/cuda/buffer.h"
#include "kernels/cuda/failure.h"

namespace moebius {

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
  if (error == cudaSuccess) return memory;
  cudaGetLastError();  // it is noted here, and not to be found by a launch
  failure->Note(CudaStatus(
      error, absl::StrCat(size_bytes, " bytes of a GPU for ", name).c_str()));
  return nullptr;
}

void FreeOnGpu(void* memory) { cudaFree(memory); }

void UploadToGpu(const void* from, int64_t size_bytes, void* to,
                 CUstream_st* stream, CudaFailure* failure) {
  if (size_bytes == 0 || to == nullptr) return;
  cudaError_t error = cudaMemcpyAsync(to, from, static_cast<size_t>(size_bytes),
                                      cudaMemcpyHostToDevice, stream);
  if (error == cudaSuccess) error = cudaStreamSynchronize(stream);
  failure->Note(CudaStatus(error, "a copy to the GPU"));
}

}  // namespace moebius
