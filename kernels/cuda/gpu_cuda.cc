#include <cuda_runtime_api.h>

#include "absl/strings/str_cat.h"
#include "kernels/cuda/gpu.h"

namespace moebius {

int NumGpus() {
  int count = 0;
  if (cudaGetDeviceCount(&count) != cudaSuccess) {
    cudaGetLastError();  // no driver, or none that is new enough
    return 0;
  }
  return count;
}

absl::Status UseGpu(int gpu) {
  const int count = NumGpus();
  if (gpu < 0 || gpu >= count) {
    return absl::NotFoundError(
        absl::StrCat("GPU ", gpu, " is asked for, and there are ", count));
  }
  return CudaStatus(cudaSetDevice(gpu), "the choice of a GPU");
}

absl::StatusOr<GpuMemory> MemoryOfGpu() {
  size_t free = 0, total = 0;
  const absl::Status status =
      CudaStatus(cudaMemGetInfo(&free, &total), "how much memory the GPU has");
  if (!status.ok()) return status;
  return GpuMemory{static_cast<int64_t>(free), static_cast<int64_t>(total)};
}

bool ProcessesShareGpu(int gpu) {
  int shared = 0;
  if (cudaDeviceGetAttribute(&shared, cudaDevAttrMpsEnabled, gpu) !=
      cudaSuccess) {
    cudaGetLastError();  // a driver that does not know the question
    return false;
  }
  return shared != 0;
}

std::unique_ptr<GpuStream> GpuStream::Create(int gpu, CudaFailure* failure,
                                             Priority priority) {
  std::unique_ptr<GpuStream> stream(new GpuStream(failure));
  if (const absl::Status chosen = UseGpu(gpu); !chosen.ok()) {
    failure->Note(chosen);
    return stream;
  }
  int lowest = 0, highest = 0;
  failure->Note(CudaStatus(cudaDeviceGetStreamPriorityRange(&lowest, &highest),
                           "priorities of streams"));
  failure->Note(CudaStatus(cudaStreamCreateWithPriority(
                               &stream->stream_, cudaStreamNonBlocking,
                               priority == Priority::kLow ? lowest : highest),
                           "a stream of the GPU"));
  failure->Note(
      CudaStatus(cudaDeviceGetAttribute(&stream->num_multiprocessors_,
                                        cudaDevAttrMultiProcessorCount, gpu),
                 "multiprocessors of the GPU"));
  return stream;
}

GpuStream::~GpuStream() {
  if (stream_ == nullptr) return;
  cudaStreamSynchronize(stream_);
  cudaStreamDestroy(stream_);
}

absl::Status GpuStream::Wait() const {
  failure_->Note(CudaStatus(cudaStreamSynchronize(stream_), "work on the GPU"));
  return failure_->status();
}

absl::StatusOr<std::unique_ptr<HostMapping>> HostMapping::Create(
    void* memory, int64_t size_bytes) {
  const absl::Status registered = CudaStatus(
      cudaHostRegister(memory, static_cast<size_t>(size_bytes),
                       cudaHostRegisterPortable | cudaHostRegisterMapped),
      "memory of the host that a GPU is to reach");
  if (!registered.ok()) return registered;
  std::unique_ptr<HostMapping> mapping(new HostMapping(memory));
  void* there = nullptr;
  const absl::Status found =
      CudaStatus(cudaHostGetDevicePointer(&there, memory, 0),
                 "where a GPU sees memory of the host");
  if (!found.ok()) return found;
  if (there != memory) {
    return absl::UnimplementedError(
        "a GPU that sees memory of the host at another address");
  }
  return mapping;
}

HostMapping::~HostMapping() {
  cudaHostUnregister(memory_);
  cudaGetLastError();  // nobody is left to be told
}

}  // namespace moebius
