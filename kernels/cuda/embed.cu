#include <cuda_runtime_api.h>

#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/operators.h"
#include "kernels/cuda/tiles.h"

namespace moebius {
namespace {

constexpr int kThreads = 128;

// A thread takes two steps of the reduced dimension, which lie side by side in
// a tile. A row of an id outside the table is zeros.
__global__ void EmbedRow(const Bf16* table, int n, int k, const int32_t* ids,
                         float* out, ptrdiff_t stride) {
  // What is behind may read ahead what the host has put there for the pass.
  AwaitPrevious();
  AllowNext();
  const int row = static_cast<int>(blockIdx.x);
  const int id = ids[row];
  const bool known = 0 <= id && id < n;
  const Bf16* const panel = table + size_t{kTileRows} * (id / kTileRows) * k;
  float* const to = out + row * stride;
  for (int at = 2 * static_cast<int>(threadIdx.x); at < k; at += 2 * kThreads) {
    uint32_t word = 0;
    if (known) {
      word = *reinterpret_cast<const uint32_t*>(
          panel + size_t{kTileElements} * (at / kTileRows) +
          TileIndex(id % kTileRows, at % kTileRows));
    }
    to[at] = __uint_as_float(word << 16);
    to[at + 1] = __uint_as_float(word & 0xffff0000u);
  }
}

// A thread takes a column, in which it goes down the rows in order: what it
// overwrites is above all that it has still to read. Rows that do not ascend
// are left out.
__global__ void KeepColumn(const int32_t* rows, int count, float* x,
                           int num_rows, int cols, ptrdiff_t stride) {
  constexpr int kTogether = 8;  // reads in flight
  const int col = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  WaitForEarlier();
  if (col >= cols) return;
  for (int first = 0; first < count; first += kTogether) {
    float values[kTogether];
    bool kept[kTogether];
#pragma unroll
    for (int i = 0; i < kTogether; ++i) {
      const int from = first + i < count ? rows[first + i] : -1;
      kept[i] = first + i <= from && from < num_rows;
      if (kept[i]) values[i] = x[from * stride + col];
    }
#pragma unroll
    for (int i = 0; i < kTogether; ++i) {
      if (kept[i]) x[(first + i) * stride + col] = values[i];
    }
  }
}

}  // namespace

template <Numerics N>
void Embed(const Cuda<N>& device, Given<const ColumnParallel<Cuda<N>>&> table,
           const int32_t* ids, GpuRows<N> out) {
  if (out.rows == 0) return;
  LaunchEarly(device.stream, device.failure, "rows of the embedding",
              {dim3(static_cast<unsigned>(out.rows)), kThreads}, EmbedRow,
              table.data, table.n, table.k, ids, out.data, out.stride);
}

template <Numerics N>
void KeepRows(const Cuda<N>& device, const int32_t* rows, int count,
              GpuRows<N> x) {
  if (count == 0 || x.cols == 0) return;
  const auto blocks = static_cast<unsigned>((x.cols + kThreads - 1) / kThreads);
  LaunchEarly(device.stream, device.failure, "rows to be kept",
              {dim3(blocks), kThreads}, KeepColumn, rows, count, x.data, x.rows,
              x.cols, x.stride);
}

#define MOEBIUS_INSTANTIATE(N)                                           \
  template void Embed<N>(const Cuda<N>&, const ColumnParallel<Cuda<N>>&, \
                         const int32_t*, View<float, Cuda<N>>);          \
  template void KeepRows<N>(const Cuda<N>&, const int32_t*, int,         \
                            View<float, Cuda<N>>);
MOEBIUS_INSTANTIATE(Numerics::kExact)
MOEBIUS_INSTANTIATE(Numerics::kFast)
#undef MOEBIUS_INSTANTIATE

}  // namespace moebius
