#include <cuda_runtime.h>

#include "kernels/cuda/highest.h"
#include "kernels/cuda/launch.cuh"

namespace moebius {
namespace {

constexpr int kThreads = 256;
constexpr uint32_t kAllLanes = 0xffffffffu;

// Of two, the higher one, or the one that comes first.
__device__ HighestPart Higher(const HighestPart& a, const HighestPart& b) {
  const bool first = a.value != b.value ? a.value > b.value : a.index < b.index;
  HighestPart higher = first ? a : b;
  higher.finite = a.finite & b.finite;
  return higher;
}

__device__ HighestPart FromLane(const HighestPart& part, int mask) {
  return {__shfl_xor_sync(kAllLanes, part.value, mask),
          __shfl_xor_sync(kAllLanes, part.index, mask),
          __shfl_xor_sync(kAllLanes, part.finite, mask)};
}

// [parts][rows] blocks.
__global__ void __launch_bounds__(kThreads)
    HighestOfPart(const float* logits, ptrdiff_t stride, int cols,
                  HighestPart* parts) {
  __shared__ HighestPart room[kThreads / 32];
  WaitForEarlier();
  const float* const row = logits + blockIdx.y * stride;
  const int begin = static_cast<int>(blockIdx.x) * kHighestPartLogits;
  const int end = min(begin + kHighestPartLogits, cols);
  HighestPart best{-INFINITY, begin, 1};
#pragma unroll 4
  for (int i = begin + static_cast<int>(threadIdx.x); i < end; i += kThreads) {
    const float value = row[i];
    best = Higher(
        best, {isnan(value) ? -INFINITY : value, i, isfinite(value) ? 1 : 0});
  }
  for (int mask = 16; mask > 0; mask /= 2) {
    best = Higher(best, FromLane(best, mask));
  }
  if (threadIdx.x % 32 == 0) room[threadIdx.x / 32] = best;
  __syncthreads();
  if (threadIdx.x != 0) return;
  for (int i = 1; i < kThreads / 32; ++i) best = Higher(best, room[i]);
  parts[blockIdx.y * gridDim.x + blockIdx.x] = best;
}

}  // namespace

void FindHighestParts(const float* logits, ptrdiff_t stride, int rows, int cols,
                      HighestPart* parts, CUstream_st* stream,
                      CudaFailure* failure) {
  if (rows == 0) return;
  const dim3 grid(static_cast<unsigned>(NumHighestParts(cols)),
                  static_cast<unsigned>(rows));
  LaunchEarly(stream, failure, "the highest logits", {grid, kThreads},
              HighestOfPart, logits, stride, cols, parts);
}

}  // namespace moebius
