// Weights into their tiles, in memory of a GPU.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/bf16.h"

struct CUstream_st;

namespace moebius {

class CudaFailure;

// W [n][k] row-major with `stride` elements a row, in memory of the GPU. Rows
// from `n` and steps from `k` on are zeros, up to whole tiles.
struct TilePacking {
  const Bf16* w = nullptr;
  int n = 0;
  int k = 0;
  ptrdiff_t stride = 0;
  int n_tiles = 0;
  int k_tiles = 0;
  // Tiles of one unit of steps are neighbours (RowParallel, tiles.h); else
  // those of one panel are (ColumnParallel).
  bool by_units = false;
  Bf16* out = nullptr;  // [n_tiles * k_tiles] tiles
};
void PackOnGpu(const TilePacking& packing, CUstream_st* stream,
               CudaFailure* failure);

// Made-up weights (worker/model/tensor_source.h), where nothing has to be
// brought from the host: rows [row_begin, row_begin + rows) and columns
// [col_begin, col_begin + cols) of a matrix of `stride` columns, whose tensor
// has this seed, side by side into `out`.
struct MadeUpMatrix {
  uint64_t seed = 0;
  int64_t stride = 0;
  int64_t row_begin = 0;
  int64_t col_begin = 0;
  int64_t rows = 0;
  int64_t cols = 0;
};
void MakeUpOnGpu(const MadeUpMatrix& matrix, Bf16* out, CUstream_st* stream,
                 CudaFailure* failure);
// The vector of `size` elements.
void MakeUpOnGpu(uint64_t seed, int size, float* out, CUstream_st* stream,
                 CudaFailure* failure);

}  // namespace moebius
