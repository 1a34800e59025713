// How a GPU copies in a switch: by copy engines and the driver, or by a kernel
// and of how many thread blocks. Pure.
#pragma once

#include <cstdint>

namespace moebius {

struct CopyShape {
  int64_t block_bytes = 0;  // of the largest contiguous piece
  int num_ranks = 1;
  int ranks_on_gpu = 1;  // that share this rank's GPU, itself among them
  int num_multiprocessors = 1;
};

// Grids are of thread blocks of 512 threads with 64 bytes a thread in flight. 0
// stands for copies of the driver, one after the other: between GPUs its copy
// engines make them.
struct CopyChoice {
  int peer_grid = 0;  // blocks from other GPUs
  int own_grid = 0;   // blocks on this GPU, beside those
  int page_grid = 0;  // KV pages, which are scattered: always a kernel
  friend bool operator==(const CopyChoice&, const CopyChoice&) = default;
};

// From this size of a block on engines beat the kernel. Measured between H200
// joined by NVLink, a barrier a layer, GB/s a direction, all ranks at once:
// engines 366, 342, 315, 275, 220 with blocks of 302, 75, 38, 19, 9 MB; a
// kernel 330 with any. Engines also leave the multiprocessors alone.
inline constexpr int64_t kEngineBlockBytes = int64_t{44} << 20;

// The same within a GPU that all ranks share. Measured on an H200 with MPS,
// switches of Qwen3-30B-A3B between 2, 4, 8 ranks (blocks of 302, 75, 19 MB),
// TB/s read and written: driver 4.1, 4.0, 3.8; kernel 3.8, 3.8, 3.6; one large
// copy 4.3. Below, one launch for all blocks is less work than one for each.
inline constexpr int64_t kDriverBlockBytes = int64_t{4} << 20;

// Spare slots that a group should have. With two of them a layer is copied
// while ranks meet behind the one before. Measured on an H200 with MPS, all
// ranks on it, switches of Qwen3-30B-A3B between 2, 4, 8 ranks (blocks of 302,
// 75, 19 MB), share of the rate of one large copy by each: with one spare slot
// 97, 92, 85 to 90 %, with two 100, 98, 93 to 94 %, with four no more. So a
// slot more counts where blocks are small, and is small then.
int SpareSlotsByDefault(int num_ranks, int64_t block_bytes);

// REQUIRES: positive numbers; ranks_on_gpu at most num_ranks.
CopyChoice ChooseCopies(const CopyShape& shape);

}  // namespace moebius
