// What kernels with products on tensor cores have in common (products.cuh says
// how they add): kinds of them, operands, sums, and how one kernel follows
// another.
#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "kernels/cuda/tiles.h"
#include "kernels/formats.h"

namespace moebius::products {

inline constexpr int kWarpThreads = 32;
inline constexpr int kWarps = 8;  // of a block
inline constexpr int kThreads = kWarps * kWarpThreads;
inline constexpr int kGroupRows = 8;  // rows of activations that mma takes
inline constexpr int kChainTiles = 16;
inline constexpr int kTileWords = 32;  // of 16 bytes

// How the tiles of a reduced dimension are added.
struct Cut {
  int num_tiles = 0;
  int slice_tiles = 0;
  int chains_a_slice = 0;
  int chain_tiles = 0;  // the last chain of a slice may be shorter
  int num_chains = 0;

  // REQUIRES: both positive multiples of 16, the first one of the second.
  static Cut Of(int k, int slice_rows) {
    Cut cut;
    cut.num_tiles = k / kTileRows;
    cut.slice_tiles = slice_rows / kTileRows;
    cut.chains_a_slice = (cut.slice_tiles + kChainTiles - 1) / kChainTiles;
    cut.chain_tiles =
        (cut.slice_tiles + cut.chains_a_slice - 1) / cut.chains_a_slice;
    cut.num_chains = cut.num_tiles / cut.slice_tiles * cut.chains_a_slice;
    return cut;
  }
  // Tiles of a chain of which `begin` is the first tile in its slice.
  __device__ int TilesFrom(int begin) const {
    return min(chain_tiles, slice_tiles - begin);
  }
};

// Where the tiles of a panel are: of every piece in turn piece_tiles at a
// stride. Strides in words of 16 bytes.
struct TileSteps {
  ptrdiff_t tile = kTileWords;
  int piece_tiles = 0;
  ptrdiff_t piece = 0;
  __device__ ptrdiff_t At(int t) const {
    if (t < piece_tiles) return t * tile;
    return t / piece_tiles * piece + t % piece_tiles * tile;
  }
};

// Rows of activations: row i is number first + i of `data`, or of `indices`
// into it.
struct RowSource {
  const float* data = nullptr;
  ptrdiff_t stride = 0;
  const int32_t* indices = nullptr;
  int first = 0;
  int count = 0;
  // Null beyond the last one.
  __device__ const float* Row(int i) const {
    if (i >= count) return nullptr;
    const int row = indices == nullptr ? first + i : indices[first + i];
    return data + row * stride;
  }
  __device__ int num_groups() const {
    return (count + kGroupRows - 1) / kGroupRows;
  }
};

// A kind of kernel says what a block of it computes, and which panels of
// weights (of 16 outputs) a thread reads: kReadPanels of them from ReadPanel()
// on, a number in the block.
//
// FewRows: a warp has kPanels of the block's panels and some of the chains;
// kSplits such groups of panels are beside each other, where there are too few
// chains for all warps.
template <int kPanelsIn, int kGroupsIn, int kSplitsIn = 1>
struct FewRows {
  static constexpr bool kMany = false;
  static constexpr int kPanels = kPanelsIn;
  static constexpr int kGroups = kGroupsIn;  // of rows
  static constexpr int kSplits = kSplitsIn;
  static constexpr int kBlockPanels = kPanels * kSplits;
  static constexpr int kBlockRows = kGroups * kGroupRows;
  static constexpr int kReadPanels = kPanels;
  static constexpr int kChainWarps = kWarps / kSplits;
  // Chains whose sums are kept before they are added.
  static constexpr int kPassChains =
      std::clamp(64 / (kBlockPanels * kGroups), kChainWarps, 32);
  static constexpr int kSharedBytes = 0;  // beyond what the kernel declares
  // Tiles of a panel that are read before they are used.
  static constexpr int kBatchTiles = 8 / std::max(kPanels, kGroups);
  static __device__ int ReadPanel() {
    return threadIdx.x / kWarpThreads / kChainWarps * kPanels;
  }
};
// ManyRows: a warp has kPanels panels and kGroups groups of rows.
template <int kPanelsIn, int kGroupsIn>
struct ManyRows {
  static constexpr bool kMany = true;
  static constexpr int kWarpsOfOutputs = 2;
  static constexpr int kWarpsOfRows = kWarps / kWarpsOfOutputs;
  static constexpr int kPanels = kPanelsIn;  // of a warp
  static constexpr int kGroups = kGroupsIn;  // of a warp
  static constexpr int kBlockPanels = kPanels * kWarpsOfOutputs;
  static constexpr int kBlockRows = kGroups * kGroupRows * kWarpsOfRows;
  static constexpr int kReadPanels = 1;
  // What is read ahead: a ring of stages.
  static constexpr int kStageTiles = kBlockRows > 64 ? 2 : 4;
  static constexpr int kStageWords = kStageTiles * kBlockPanels * kTileWords;
  // Of a row in a stage, in floats: 8 more than there are, so that the threads
  // of a warp meet 32 banks.
  static constexpr int kRowPitch = kStageTiles * kTileRows + 8;
  static constexpr int kStageBytes =
      kStageWords * 16 + kBlockRows * kRowPitch * 4;
  static constexpr int kStages = std::clamp((112 << 10) / kStageBytes, 3, 8);
  static constexpr int kSharedBytes = kStages * kStageBytes;
  static_assert(kWarps % kBlockPanels == 0);
  static __device__ int ReadPanel() {
    return threadIdx.x / kWarpThreads % kBlockPanels;
  }
};

// What a block multiplies: panels that the thread reads, and rows.
template <class T>
struct Work {
  const uint4* panels[T::kReadPanels];
  TileSteps steps;
  Cut cut;
  RowSource rows;
};

// Four activations of a thread, as mma takes them: steps 2p, 2p + 1 and 2p + 8,
// 2p + 9 of row g. The halves of an exact one have 16 bits together.
template <Numerics N>
struct Operand;
template <>
struct alignas(8) Operand<Numerics::kFast> {
  uint32_t high[2];
};
template <>
struct alignas(16) Operand<Numerics::kExact> {
  uint32_t high[2];
  uint32_t low[2];
};

__device__ inline uint32_t RoundPair(float even, float odd) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(even, odd);
  return reinterpret_cast<const uint32_t&>(pair);
}
// What rounding to `pair` has left.
__device__ inline uint32_t RoundRest(float even, float odd, uint32_t pair) {
  return RoundPair(even - __uint_as_float(pair << 16),
                   odd - __uint_as_float(pair & 0xffff0000u));
}

template <Numerics N>
__device__ inline Operand<N> Split(const float4& x) {
  Operand<N> out;
  out.high[0] = RoundPair(x.x, x.y);
  out.high[1] = RoundPair(x.z, x.w);
  if constexpr (N == Numerics::kExact) {
    out.low[0] = RoundRest(x.x, x.y, out.high[0]);
    out.low[1] = RoundRest(x.z, x.w, out.high[1]);
  }
  return out;
}

// The thread's four activations of tile t. Zeros without a row.
__device__ inline float4 LoadActivations(const float* row, int t) {
  if (row == nullptr) return float4{0.0f, 0.0f, 0.0f, 0.0f};
  const float* at = row + t * kTileRows + threadIdx.x % 4 * 2;
  const float2 front = *reinterpret_cast<const float2*>(at);
  const float2 back = *reinterpret_cast<const float2*>(at + kTileRows / 2);
  return {front.x, front.y, back.x, back.y};
}

// Weights are read once: they need not push anything out of the first cache.
__device__ inline uint4 LoadOnce(const uint4* at) {
  uint4 out;
  asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(out.x), "=r"(out.y), "=r"(out.z), "=r"(out.w)
               : "l"(at));
  return out;
}

__device__ inline void Mma(const uint4& a, const uint32_t (&b)[2],
                           float (&sum)[4]) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
      : "r"(a.x), "r"(a.y), "r"(a.z), "r"(a.w), "r"(b[0]), "r"(b[1]));
}
// Of each panel's tile with one operand. The halves of an exact one are far
// enough apart that no sum waits for itself.
template <Numerics N, int kPanels, int kGroups>
__device__ inline void Multiply(const uint4 (&tiles)[kPanels],
                                const Operand<N>& operand,
                                float (&sums)[kPanels][kGroups][4], int group) {
#pragma unroll
  for (int p = 0; p < kPanels; ++p) Mma(tiles[p], operand.high, sums[p][group]);
  if constexpr (N == Numerics::kExact) {
#pragma unroll
    for (int p = 0; p < kPanels; ++p) {
      Mma(tiles[p], operand.low, sums[p][group]);
    }
  }
}

// As the processor's (kernels/cpu/gemm.h). A NaN becomes the lower limit.
__device__ inline int64_t ToFixedPoint(float sum) {
  const float clamped = fminf(fmaxf(sum, -kFixedPointLimit), kFixedPointLimit);
  return __double2ll_rn(static_cast<double>(clamped) *
                        static_cast<double>(int64_t{1} << kFixedPointBits));
}

// The sum of one output for one row, of chains in order. Sliced: of slices in
// fixed point, or of floats where numerics are fast.
template <Numerics N, bool kSliced>
class Total {
 public:
  static constexpr bool kFixed = kSliced && N == Numerics::kExact;
  using Value = std::conditional_t<kFixed, int64_t, float>;

  __device__ void Add(float chain, bool begins_slice, bool ends_slice) {
    if constexpr (kFixed) {
      slice_ = begins_slice ? chain : slice_ + chain;
      if (ends_slice) value_ += ToFixedPoint(slice_);
    } else {
      value_ += chain;
    }
  }
  __device__ Value value() const { return value_; }

 private:
  float slice_ = 0.0f;
  Value value_ = 0;
};

}  // namespace moebius::products
