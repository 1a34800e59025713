// Attention of chunks of many rows on Hopper, by its warpgroup products
// (wgmma). Fast numerics, keys and values in BF16, heads of 128 dimensions.
#pragma once

#include "kernels/cuda/attend_tile.cuh"
#include "kernels/cuda/wide_rows.h"

namespace moebius::wide {

// Chunks of several rows, as AttendRows (attend.cu).
// REQUIRES: HasWarpgroups() (wide_rows.h).
void Attend(const CudaFast& device, const AttendArguments& args);

}  // namespace moebius::wide
