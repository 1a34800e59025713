// Sums over the threads of a warp and of a block; of floats in one fixed order.
#pragma once

namespace moebius {

// The sum of all lanes, in every lane.
__device__ inline float SumOfWarp(float value) {
#pragma unroll
  for (int step = 16; step > 0; step /= 2) {
    value += __shfl_xor_sync(0xffffffffu, value, step);
  }
  return value;
}

// The sum of all threads of a block, in every thread. `room` is shared memory
// of a float a warp, which nobody else uses.
// REQUIRES: kThreads is a multiple of 32, and all of them call.
template <int kThreads>
__device__ float SumOfBlock(float value, float* room) {
  const int warp = static_cast<int>(threadIdx.x) / 32;
  value = SumOfWarp(value);
  if (threadIdx.x % 32 == 0) room[warp] = value;
  __syncthreads();
  float sum = room[0];
#pragma unroll
  for (int i = 1; i < kThreads / 32; ++i) sum += room[i];
  return sum;
}

// The sum of all threads of a block before this one.
// REQUIRES: as SumOfBlock; once in a kernel.
template <int kThreads>
__device__ int SumBefore(int value) {
  __shared__ int sums[kThreads / 32];
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  int sum = value;
#pragma unroll
  for (int step = 1; step < 32; step *= 2) {
    const int before = __shfl_up_sync(0xffffffffu, sum, step);
    if (lane >= step) sum += before;
  }
  if (lane == 31) sums[warp] = sum;
  __syncthreads();
  int before = sum - value;
  for (int w = 0; w < warp; ++w) before += sums[w];
  return before;
}

}  // namespace moebius
