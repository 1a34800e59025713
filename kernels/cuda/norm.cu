#include <cuda_runtime_api.h>

#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/operators.h"
#include "kernels/cuda/reduce.cuh"

namespace moebius {
namespace {

constexpr int kThreads = 256;

// A block a row. The order of the sum of squares follows from `size` alone.
__global__ void __launch_bounds__(kThreads)
    NormalizeRow(const float* x, ptrdiff_t x_stride, const float* weight,
                 int size, float eps, float* out, ptrdiff_t out_stride) {
  __shared__ float room[kThreads / 32];
  const float* const from = x + blockIdx.x * x_stride;
  float* const to = out + blockIdx.x * out_stride;
  WaitForEarlier();
  float squares = 0.0f;
  for (int i = static_cast<int>(threadIdx.x); i < size; i += kThreads) {
    squares = fmaf(from[i], from[i], squares);
  }
  const float mean =
      SumOfBlock<kThreads>(squares, room) / static_cast<float>(size);
  const float scale = 1.0f / sqrtf(mean + eps);
  for (int i = static_cast<int>(threadIdx.x); i < size; i += kThreads) {
    to[i] = from[i] * scale * weight[i];
  }
}

}  // namespace

template <Numerics N>
void RmsNorm(const Cuda<N>& device, ConstGpuRows<N> x,
             Given<const Norm<Cuda<N>>&> norm, GpuRows<N> out) {
  if (x.rows == 0) return;
  LaunchEarly(device.stream, device.failure, "the norm of rows",
              {dim3(static_cast<unsigned>(x.rows)), kThreads}, NormalizeRow,
              x.data, x.stride, norm.weight, norm.size, norm.eps, out.data,
              out.stride);
}

#define MOEBIUS_INSTANTIATE(N)                                         \
  template void RmsNorm<N>(const Cuda<N>&, View<const float, Cuda<N>>, \
                           const Norm<Cuda<N>>&, View<float, Cuda<N>>);
MOEBIUS_INSTANTIATE(Numerics::kExact)
MOEBIUS_INSTANTIATE(Numerics::kFast)
#undef MOEBIUS_INSTANTIATE

}  // namespace moebius
