// Weights in the order of a GPU (kernels/cuda/tiles.h), packed on the host.
#pragma once

#include <cstddef>

#include "kernels/bf16.h"
#include "kernels/cuda/tiles.h"

namespace moebius {

// W [n][k] row-major with `stride` elements a row, as PackMatrix and
// PackRowParallel (formats.h) pack it, in tiles. On the host, for tests and
// small matrices. REQUIRES: k a multiple of 16; for the second one n as well.
void PackTiles(const Bf16* w, int n, int k, ptrdiff_t stride, Bf16* out);
void PackRowParallelTiles(const Bf16* w, int n, int k, ptrdiff_t stride,
                          Bf16* out);

}  // namespace moebius
