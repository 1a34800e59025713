#include <algorithm>

#include "kernels/cuda/copies.h"
#include "kernels/cuda/failure.h"

namespace moebius {
namespace {

constexpr int kThreads = 512;
constexpr int kInFlight = 4;               // loads of 16 bytes a thread
constexpr int kBlocksAMultiprocessor = 4;  // as many threads as it holds
constexpr int64_t kPieceBytes = kThreads * kInFlight * sizeof(uint4);
constexpr int kCopiesALaunch = 64;  // what fits among a kernel's parameters

struct CopyList {
  GpuCopy copies[kCopiesALaunch];
};

// At most a piece, by all threads of the block. What is copied is not read
// again soon.
__device__ void CopyVectors(const uint4* from, uint4* to, int count) {
  uint4 loaded[kInFlight];
#pragma unroll
  for (int u = 0; u < kInFlight; ++u) {
    const int at = threadIdx.x + u * kThreads;
    if (at < count) loaded[u] = __ldcs(from + at);
  }
#pragma unroll
  for (int u = 0; u < kInFlight; ++u) {
    const int at = threadIdx.x + u * kThreads;
    if (at < count) __stcs(to + at, loaded[u]);
  }
}

__global__ void __launch_bounds__(kThreads, kBlocksAMultiprocessor)
    CopyKernel(const __grid_constant__ CopyList list) {
  const GpuCopy& copy = list.copies[blockIdx.x];
  for (int64_t begin = blockIdx.y * kPieceBytes; begin < copy.size_bytes;
       begin += gridDim.y * kPieceBytes) {
    const int size =
        static_cast<int>(min(kPieceBytes, copy.size_bytes - begin));
    const std::byte* const from = copy.from + begin;
    std::byte* const to = copy.to + begin;
    const bool whole =
        (reinterpret_cast<uintptr_t>(from) | reinterpret_cast<uintptr_t>(to) |
         static_cast<uintptr_t>(size)) %
            sizeof(uint4) ==
        0;
    if (whole) {
      CopyVectors(reinterpret_cast<const uint4*>(from),
                  reinterpret_cast<uint4*>(to),
                  size / static_cast<int>(sizeof(uint4)));
    } else {
      for (int j = threadIdx.x; j < size; j += kThreads) to[j] = from[j];
    }
  }
}

// Of pages of a piece at least: a thread block has a piece of one page at a
// time.
__global__ void __launch_bounds__(kThreads, kBlocksAMultiprocessor)
    LargePageKernel(const __grid_constant__ GpuPagePools pools,
                    const GpuPageMove* moves, int vectors, int pieces_a_page,
                    int64_t pieces) {
  constexpr int kStride = kThreads * kInFlight;
  for (int64_t piece = blockIdx.x; piece < pieces; piece += gridDim.x) {
    const GpuPageMove move = moves[piece / pieces_a_page];
    const int begin = static_cast<int>(piece % pieces_a_page) * kStride;
    CopyVectors(
        reinterpret_cast<const uint4*>(pools.sources[move.src_rank] +
                                       move.src_page * pools.page_bytes) +
            begin,
        reinterpret_cast<uint4*>(pools.own + move.dst_page * pools.page_bytes) +
            begin,
        min(kStride, vectors - begin));
  }
}

// Of all pages end to end, whatever their size: vector v belongs to move
// v / vectors.
__global__ void __launch_bounds__(kThreads, kBlocksAMultiprocessor)
    PageKernel(const __grid_constant__ GpuPagePools pools,
               const GpuPageMove* moves, uint32_t vectors, uint32_t total) {
  constexpr uint32_t kStride = kThreads * kInFlight;
  for (uint32_t first = blockIdx.x * kStride; first < total;
       first += gridDim.x * kStride) {
    uint4 loaded[kInFlight];
    uint4* to[kInFlight];
#pragma unroll
    for (int u = 0; u < kInFlight; ++u) {
      const uint32_t v = first + u * kThreads + threadIdx.x;
      to[u] = nullptr;
      if (v >= total) continue;
      const GpuPageMove move = moves[v / vectors];
      const uint32_t in_page = v % vectors;
      const std::byte* const from =
          pools.sources[move.src_rank] + move.src_page * pools.page_bytes;
      to[u] = reinterpret_cast<uint4*>(pools.own +
                                       move.dst_page * pools.page_bytes) +
              in_page;
      loaded[u] = __ldcs(reinterpret_cast<const uint4*>(from) + in_page);
    }
#pragma unroll
    for (int u = 0; u < kInFlight; ++u) {
      if (to[u] != nullptr) __stcs(to[u], loaded[u]);
    }
  }
}

}  // namespace

absl::Status LaunchCopies(absl::Span<const GpuCopy> copies, int grid,
                          CUstream_st* stream) {
  while (!copies.empty()) {
    const auto now =
        copies.first(std::min(copies.size(), size_t{kCopiesALaunch}));
    copies.remove_prefix(now.size());
    CopyList list{};
    std::copy(now.begin(), now.end(), list.copies);
    int64_t longest = 1;
    for (const GpuCopy& copy : now) {
      longest = std::max(longest, copy.size_bytes);
    }
    // Thread blocks of a copy.
    const int64_t most = (longest + kPieceBytes - 1) / kPieceBytes;
    const int64_t share = grid / static_cast<int64_t>(now.size());
    const dim3 blocks(
        static_cast<unsigned>(now.size()),
        static_cast<unsigned>(std::clamp<int64_t>(share, 1, most)));
    CopyKernel<<<blocks, kThreads, 0, stream>>>(list);
    const absl::Status launched =
        CudaStatus(cudaGetLastError(), "launching copies");
    if (!launched.ok()) return launched;
  }
  return absl::OkStatus();
}

absl::Status LaunchPageMoves(const GpuPagePools& pools,
                             const GpuPageMove* moves, int64_t count, int grid,
                             CUstream_st* stream) {
  constexpr int64_t kStride = kThreads * kInFlight;
  const int64_t vectors = pools.page_bytes / int64_t{sizeof(uint4)};
  if (count > 0 && vectors >= kStride) {
    const int64_t pieces_a_page = (vectors + kStride - 1) / kStride;
    const int64_t pieces = count * pieces_a_page;
    LargePageKernel<<<static_cast<int>(std::min<int64_t>(grid, pieces)),
                      kThreads, 0, stream>>>(
        pools, moves, static_cast<int>(vectors),
        static_cast<int>(pieces_a_page), pieces);
    return CudaStatus(cudaGetLastError(), "launching moves of pages");
  }
  // Indices of vectors are 32-bit numbers.
  constexpr int64_t kMostVectors = int64_t{1} << 31;
  while (count > 0) {
    const int64_t now = std::min(count, kMostVectors / vectors);
    const int64_t total = now * vectors;
    const int blocks = static_cast<int>(
        std::min<int64_t>(grid, (total + kStride - 1) / kStride));
    PageKernel<<<blocks, kThreads, 0, stream>>>(pools, moves,
                                                static_cast<uint32_t>(vectors),
                                                static_cast<uint32_t>(total));
    const absl::Status launched =
        CudaStatus(cudaGetLastError(), "launching moves of pages");
    if (!launched.ok()) return launched;
    moves += now;
    count -= now;
  }
  return absl::OkStatus();
}

}  // namespace moebius
