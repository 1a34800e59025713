// How packed weights lie in memory of a GPU: in tiles of 16 outputs by 16 steps
// of the reduced dimension, 512 bytes each, in the order in which the tensor
// cores' instruction m16n8k16 takes its first operand (PTX ISA, "Matrix
// fragments for mma.m16n8k16"). A warp loads a tile with one read of 16 bytes a
// thread, and multiplies.
//
//   ColumnParallel   [ceil(n/16)][k/16] tiles: a panel of 16 outputs is one
//                    contiguous block. Rows beyond n are zero.
//   RowParallel      [k/16][n/16] tiles: a unit of 16 steps of the reduced
//                    dimension is one contiguous block, over all outputs.
//
// So panels, units and experts have the places and sizes that formats.h gives
// them; only the order within 512 bytes is another.
//
//   thread t of the warp, group g = t / 4, pair p = t % 4, holds 8 elements:
//     output g,     steps 2p, 2p + 1         bytes 16t ..
//     output g + 8, steps 2p, 2p + 1
//     output g,     steps 2p + 8, 2p + 9
//     output g + 8, steps 2p + 8, 2p + 9
#pragma once

namespace moebius {

inline constexpr int kTileRows = 16;       // outputs, and steps
inline constexpr int kTileElements = 256;  // of 512 bytes

// Where an element of a tile lies. REQUIRES: both from 0 to 15.
constexpr int TileIndex(int output, int step) {
  const int thread = output % 8 * 4 + step % 8 / 2;
  const int pair = step / 8 * 2 + output / 8;
  return thread * 8 + pair * 2 + step % 2;
}

}  // namespace moebius
