// How a GPU copies in a switch: by copy engines or by a kernel, and by how many
// thread blocks. Pure.
#pragma once

#include <cstdint>

namespace moebius {

struct CopyShape {
  int64_t block_bytes = 0;  // of the largest contiguous piece
  int num_ranks = 1;
  int ranks_on_gpu = 1;  // that share this rank's GPU, itself among them
  int num_multiprocessors = 1;
};

// Grids are of thread blocks of 512 threads with 64 bytes a thread in flight.
struct CopyChoice {
  // Blocks from other GPUs: by engines, one after the other, or else by a
  // kernel of peer_grid. Blocks on this GPU: by a kernel of own_grid beside it.
  bool engines = false;
  int peer_grid = 0;
  int own_grid = 0;
  int page_grid = 0;  // of KV pages, which are scattered: always a kernel
  friend bool operator==(const CopyChoice&, const CopyChoice&) = default;
};

// From this size of a block on engines beat the kernel. Measured between H200
// joined by NVLink, a barrier a layer, GB/s a direction, all ranks at once:
// engines 366, 342, 315, 275, 220 with blocks of 302, 75, 38, 19, 9 MB; a
// kernel 330 with any. Engines also leave the multiprocessors alone.
inline constexpr int64_t kEngineBlockBytes = int64_t{44} << 20;

// REQUIRES: positive numbers; ranks_on_gpu at most num_ranks.
CopyChoice ChooseCopies(const CopyShape& shape);

}  // namespace moebius
