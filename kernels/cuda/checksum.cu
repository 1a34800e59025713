#include <algorithm>

#include "common/base/split_mix.h"
#include "kernels/checksum.h"
#include "kernels/cuda/checksum.h"
#include "kernels/cuda/failure.h"

namespace moebius {
namespace {

constexpr int kThreads = 256;
constexpr int kWarp = 32;  // as many as a block has lanes (checksum.h)
constexpr int kAhead = 8;  // words that a thread has in flight
constexpr int64_t kWordBytes = 8;
constexpr int64_t kBlockWords =
    static_cast<int64_t>(kChecksumBlockBytes) / kWordBytes;
static_assert(kBlockWords % (kWarp * kAhead) == 0);

__device__ uint64_t Step(uint64_t h, uint64_t word) {
  const uint64_t g = (h ^ word) * 0x9E3779B97F4A7C15u;
  return g ^ (g >> 32);
}

// Of `count` words, a block or the last part of one: the warp's thread j is
// lane j. The result is every thread's.
__device__ uint64_t BlockValue(const uint64_t* words, int64_t count) {
  const int lane = threadIdx.x % kWarp;
  uint64_t h = lane;
  int64_t i = lane;
  for (; i - lane + kWarp * kAhead <= count; i += kWarp * kAhead) {
    uint64_t loaded[kAhead];
#pragma unroll
    for (int u = 0; u < kAhead; ++u) loaded[u] = __ldcs(words + i + u * kWarp);
#pragma unroll
    for (int u = 0; u < kAhead; ++u) h = Step(h, loaded[u]);
  }
  // The rest, padded with zeros to a word of each lane.
  for (; i - lane < count; i += kWarp) {
    h = Step(h, i < count ? __ldcs(words + i) : 0);
  }
  uint64_t value = 0;
  for (int j = 0; j < kWarp; ++j) {
    value = Step(value, __shfl_sync(~0u, h, j));
  }
  return value;
}

__device__ uint64_t UnitChecksum(const std::byte* unit, int64_t size_bytes) {
  const auto* words = reinterpret_cast<const uint64_t*>(unit);
  uint64_t value = static_cast<uint64_t>(size_bytes);
  for (int64_t left = size_bytes / kWordBytes; left > 0; left -= kBlockWords) {
    value = Step(value, BlockValue(words, min(left, kBlockWords)));
    words += kBlockWords;
  }
  return value;
}

struct Unit {
  const std::byte* bytes;
  uint64_t place;
};

// Unit `index` of the slot, in the order expert, piece, matrix, unit.
__device__ Unit UnitAt(const SlotUnits& all, int64_t index) {
  const int64_t u = index % all.piece_units;
  index /= all.piece_units;
  const int64_t matrix = index % 3;
  index /= 3;
  const int64_t piece = index % all.num_pieces;
  const int64_t expert = index / all.num_pieces;
  const int64_t owner = expert / all.experts_per_block;
  const int64_t in_block = expert % all.experts_per_block;
  const int64_t offset =
      (owner * all.num_pieces + piece) * all.block_bytes +
      ((in_block * 3 + matrix) * all.piece_units + u) * all.unit_bytes;
  const int64_t place =
      ((all.first_expert + expert) * 3 + matrix) * all.matrix_units +
      all.first_unit + piece * all.piece_units + u;
  return {all.slot + offset, static_cast<uint64_t>(place)};
}

__global__ void __launch_bounds__(kThreads, kChecksumBlocksAMultiprocessor)
    UnitChecksumKernel(SlotUnits all, int64_t count,
                       const volatile uint32_t* stop, uint64_t* sum) {
  const int warps = kThreads / kWarp;
  const int64_t first = int64_t{blockIdx.x} * warps + threadIdx.x / kWarp;
  uint64_t total = 0;
  for (int64_t i = first; i < count; i += int64_t{gridDim.x} * warps) {
    // One thread looks, so that the warp agrees.
    uint32_t over = 0;
    if (stop != nullptr && threadIdx.x % kWarp == 0) over = *stop;
    if (__shfl_sync(~0u, over, 0) != 0) break;
    const Unit unit = UnitAt(all, i);
    total += SplitMix(UnitChecksum(unit.bytes, all.unit_bytes) +
                      SplitMix(unit.place + 1));
  }
  if (threadIdx.x % kWarp == 0) {
    atomicAdd(reinterpret_cast<unsigned long long*>(sum), total);
  }
}

}  // namespace

absl::Status LaunchUnitChecksums(const SlotUnits& units, int grid,
                                 const uint32_t* stop, uint64_t* sum,
                                 CUstream_st* stream) {
  const int64_t count =
      int64_t{units.num_experts} * units.num_pieces * 3 * units.piece_units;
  if (count == 0) return absl::OkStatus();
  constexpr int64_t kWarps = kThreads / kWarp;
  const int blocks =
      static_cast<int>(std::min<int64_t>(grid, (count + kWarps - 1) / kWarps));
  UnitChecksumKernel<<<blocks, kThreads, 0, stream>>>(units, count, stop, sum);
  return CudaStatus(cudaGetLastError(), "launching checksums");
}

}  // namespace moebius
