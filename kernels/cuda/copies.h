// Copies within a GPU's reach, by kernels: of contiguous blocks, and of pages.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "common/base/ids.h"

struct CUstream_st;

namespace moebius {

struct GpuCopy {
  const std::byte* from = nullptr;
  std::byte* to = nullptr;
  int64_t size_bytes = 0;
};

// Copies all of them at once, each by an equal share of `grid` thread blocks of
// 512 threads, and one at least. Fast where addresses and sizes are multiples
// of 16.
//
// REQUIRES: destinations are disjoint and overlap no source; grid > 0.
// Ordering: asynchronous, in the order of the stream of the calling thread's
//   GPU. Returns at once; errors are those of the launch.
absl::Status LaunchCopies(absl::Span<const GpuCopy> copies, int grid,
                          CUstream_st* stream);

// Of a page to one of ours.
struct GpuPageMove {
  uint32_t src_rank = 0;
  uint32_t src_page = 0;
  uint32_t dst_page = 0;
};

// Page p of a rank is at p * page_bytes of its pool.
struct GpuPagePools {
  std::array<const std::byte*, kMaxRanks> sources{};  // [rank]
  std::byte* own = nullptr;
  int64_t page_bytes = 0;  // a multiple of 16, below 2^31
};

// Carries out `count` moves, which lie in memory of the GPU. As LaunchCopies.
absl::Status LaunchPageMoves(const GpuPagePools& pools,
                             const GpuPageMove* moves, int64_t count, int grid,
                             CUstream_st* stream);

}  // namespace moebius
