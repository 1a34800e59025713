// Kernels that begin while the one before them on the stream still ends
// (programmatic dependent launch, from Hopper on; CUDA C++ Programming Guide).
// What a step has of small kernels is mostly beginnings.
//
// Every block of such a kernel calls WaitForEarlier() or AwaitPrevious() before
// it touches what kernels before it wrote, or writes what they read, and before
// it ends: then "the kernel before is done" goes for all before that one too.
// Weights can be read ahead of it. So can what the host put there for the pass:
// a pass's first kernel lets no other begin before that is there (embed.cu).
//
// A kernel lets the next one begin as soon as all of its own blocks have, so
// that several wait in a row, each where the one before leaves room. A kernel
// that waits for other ranks must not before they have come: ranks may share
// the GPU, and what waits behind it would take their room.
#pragma once

#include <cuda_runtime.h>

#include "kernels/cuda/failure.h"

namespace moebius {

// Waits until the kernel before has ended and its writes are seen.
__device__ inline void AwaitPrevious() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
// The next kernel may start as soon as all blocks have come here, or ended.
__device__ inline void AllowNext() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}
// Lets the next kernel of the stream begin, and waits for those before.
__device__ inline void WaitForEarlier() {
  AllowNext();
  AwaitPrevious();
}

struct LaunchShape {
  dim3 grid;
  int threads = 0;
  int shared_bytes = 0;  // beyond 48 KiB for who has asked for it
};

// Launches a kernel that does so. `what` is for the failure.
template <class... Parameters, class... Arguments>
void LaunchEarly(CUstream_st* stream, CudaFailure* failure, const char* what,
                 const LaunchShape& shape, void (*kernel)(Parameters...),
                 const Arguments&... arguments) {
  int gpu = 0, major = 0;
  cudaGetDevice(&gpu);
  cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, gpu);
  cudaLaunchAttribute early{};
  early.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  early.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = shape.grid;
  config.blockDim = dim3(static_cast<unsigned>(shape.threads));
  config.dynamicSmemBytes = static_cast<size_t>(shape.shared_bytes);
  config.stream = stream;
  config.attrs = &early;
  config.numAttrs = major >= 9 ? 1 : 0;
  failure->Note(
      CudaStatus(cudaLaunchKernelEx(&config, kernel, arguments...), what));
}

}  // namespace moebius
