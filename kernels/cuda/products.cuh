// Products of packed weights with rows of activations, on tensor cores: what
// Project, ProjectPartial and the experts have in common.
//
// Weights are the first operand of mma.m16n8k16 (16 outputs), activations the
// second one (8 rows). Tiles of weights go from memory into registers, by one
// read of 16 bytes a thread; activations are split into BF16 numbers on the
// way.
//
// Exact numerics: the reduced dimension is cut into slices, and each slice into
// chains of at most kChainTiles tiles, by sizes of the model alone (Cut). A
// chain is one accumulator that begins at zero and takes tiles in order, the
// high halves of the activations before the low ones. A slice's sum is that of
// its chains, in order. Both kinds of kernel below compute just that, so a row
// has the same bits whichever runs, and in whatever company.
//   FewRows    a block's warps share the chains: as many reads in flight as a
//              decode step needs. Activations come straight from memory.
//   ManyRows   a block's warps share outputs and rows: activations are staged
//              in shared memory, weights are read once a block.
// Fast numerics: in ManyRows a single chain does.
#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <algorithm>
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

// What a block, or one of its warps in ManyRows, multiplies.
template <int kPanels>
struct Work {
  const uint4* panels[kPanels];
  TileSteps steps;
  Cut cut;
  RowSource rows;
};

// A panel is 16 outputs.
template <int kPanelsIn, int kGroupsIn>
struct FewRows {
  static constexpr bool kMany = false;
  static constexpr int kPanels = kPanelsIn;  // of a block, all of its warps'
  static constexpr int kGroups = kGroupsIn;  // of rows
  static constexpr int kBlockPanels = kPanels;
  static constexpr int kBlockRows = kGroups * kGroupRows;
  // Chains whose sums are kept before they are added.
  static constexpr int kPassChains =
      std::clamp(64 / (kPanels * kGroups), kWarps, 32);
  // Tiles of a panel that are read before they are used.
  static constexpr int kBatchTiles = 8 / std::max(kPanels, kGroups);
  // Of the thread's warp in the panels' block number `block`.
  static __device__ int FirstPanel(int block) { return block * kBlockPanels; }
};
template <int kPanelsIn, int kGroupsIn>
struct ManyRows {
  static constexpr bool kMany = true;
  static constexpr int kWarpsOfOutputs = 4;
  static constexpr int kWarpsOfRows = kWarps / kWarpsOfOutputs;
  static constexpr int kPanels = kPanelsIn;  // of a warp
  static constexpr int kGroups = kGroupsIn;  // of a warp
  static constexpr int kBlockPanels = kPanels * kWarpsOfOutputs;
  static constexpr int kBlockGroups = kGroups * kWarpsOfRows;
  static constexpr int kBlockRows = kBlockGroups * kGroupRows;
  static constexpr int kStageTiles = 2;
  static __device__ int FirstPanel(int block) {
    const int warp = threadIdx.x / kWarpThreads;
    return block * kBlockPanels + warp % kWarpsOfOutputs * kPanels;
  }
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
template <Numerics N>
__device__ inline void Multiply(const uint4& a, const Operand<N>& b,
                                float (&sum)[4]) {
  Mma(a, b.high, sum);
  if constexpr (N == Numerics::kExact) Mma(a, b.low, sum);
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

// FewRows

// The sums of one chain, and where they are kept in shared memory: rows of 16
// outputs and 4 more floats, so that the threads of a warp meet 32 banks.
inline constexpr int kKeptRow = 20;
inline constexpr int kKeptGroup = kGroupRows * kKeptRow;

template <Numerics N, class T>
__device__ inline void RunChain(const Work<T::kPanels>& work,
                                const float* const (&rows)[T::kGroups],
                                int first_tile, int num_tiles,
                                float (&sums)[T::kPanels][T::kGroups][4]) {
  const int num_groups = work.rows.num_groups();
  // A chain lies in one piece.
  const ptrdiff_t first =
      work.steps.At(first_tile) + threadIdx.x % kWarpThreads;
  for (int t = 0; t < num_tiles; t += T::kBatchTiles) {
    uint4 tiles[T::kBatchTiles][T::kPanels];
    float4 x[T::kBatchTiles][T::kGroups];
#pragma unroll
    for (int b = 0; b < T::kBatchTiles; ++b) {
      if (t + b >= num_tiles) continue;
#pragma unroll
      for (int p = 0; p < T::kPanels; ++p) {
        tiles[b][p] =
            LoadOnce(work.panels[p] + first + (t + b) * work.steps.tile);
      }
    }
#pragma unroll
    for (int b = 0; b < T::kBatchTiles; ++b) {
      if (t + b >= num_tiles) continue;
#pragma unroll
      for (int q = 0; q < T::kGroups; ++q) {
        x[b][q] = LoadActivations(rows[q], first_tile + t + b);
      }
    }
#pragma unroll
    for (int b = 0; b < T::kBatchTiles; ++b) {
      if (t + b >= num_tiles) continue;
#pragma unroll
      for (int q = 0; q < T::kGroups; ++q) {
        if (q >= num_groups) continue;
        const Operand<N> operand = Split<N>(x[b][q]);
#pragma unroll
        for (int p = 0; p < T::kPanels; ++p) {
          Multiply<N>(tiles[b][p], operand, sums[p][q]);
        }
      }
    }
  }
}

// A thread's sums of a chain go to where all threads find them.
template <class T>
__device__ inline void Keep(const float (&sums)[T::kPanels][T::kGroups][4],
                            float* kept) {
  const int output = threadIdx.x % kWarpThreads / 4;
  const int row = threadIdx.x % 4 * 2;
#pragma unroll
  for (int p = 0; p < T::kPanels; ++p) {
#pragma unroll
    for (int q = 0; q < T::kGroups; ++q) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        kept[(p * T::kGroups + q) * kKeptGroup + (row + i % 2) * kKeptRow +
             output + i / 2 * 8] = sums[p][q][i];
      }
    }
  }
}

// store(row, output, values) is called once for each row and each of the 16
// outputs of a panel, with a value a panel.
template <Numerics N, bool kSliced, class T, class Store>
__device__ void MultiplyFewRows(const Work<T::kPanels>& work,
                                const Store& store) {
  using Sum = Total<N, kSliced>;
  constexpr int kChainFloats = T::kPanels * T::kGroups * kKeptGroup;
  constexpr int kOutputs = T::kBlockRows * kTileRows;
  constexpr int kShare = (kOutputs + kThreads - 1) / kThreads;
  __shared__ float kept[T::kPassChains * kChainFloats];
  const Cut& cut = work.cut;
  const int warp = threadIdx.x / kWarpThreads;
  const float* rows[T::kGroups];
#pragma unroll
  for (int q = 0; q < T::kGroups; ++q) {
    rows[q] = work.rows.Row(q * kGroupRows + threadIdx.x % kWarpThreads / 4);
  }
  Sum totals[kShare][T::kPanels];
  for (int begin = 0; begin < cut.num_chains; begin += T::kPassChains) {
    const int end = min(begin + T::kPassChains, cut.num_chains);
    for (int c = begin + warp; c < end; c += kWarps) {
      const int in_slice = c % cut.chains_a_slice * cut.chain_tiles;
      const int slice = c / cut.chains_a_slice;
      float sums[T::kPanels][T::kGroups][4] = {};
      RunChain<N, T>(work, rows, slice * cut.slice_tiles + in_slice,
                     cut.TilesFrom(in_slice), sums);
      Keep<T>(sums, kept + (c - begin) * kChainFloats);
    }
    __syncthreads();
#pragma unroll
    for (int i = 0; i < kShare; ++i) {
      const int row = (threadIdx.x + i * kThreads) / kTileRows;
      if (row >= work.rows.count) continue;
      const float* at = kept + row / kGroupRows * kKeptGroup +
                        row % kGroupRows * kKeptRow + threadIdx.x % kTileRows;
      for (int c = begin; c < end; ++c, at += kChainFloats) {
        const int in_slice = c % cut.chains_a_slice;
#pragma unroll
        for (int p = 0; p < T::kPanels; ++p) {
          totals[i][p].Add(at[p * T::kGroups * kKeptGroup], in_slice == 0,
                           in_slice == cut.chains_a_slice - 1);
        }
      }
    }
    __syncthreads();
  }
#pragma unroll
  for (int i = 0; i < kShare; ++i) {
    const int row = (threadIdx.x + i * kThreads) / kTileRows;
    if (row >= work.rows.count) continue;
    typename Sum::Value values[T::kPanels];
#pragma unroll
    for (int p = 0; p < T::kPanels; ++p) values[p] = totals[i][p].value();
    store(row, static_cast<int>(threadIdx.x % kTileRows), values);
  }
}

// ManyRows

// A thread's part of the next stage, on its way: tiles of weights, and
// activations that it will put into shared memory. The warps of a block share
// the groups of rows, then the tiles.
template <class T>
struct Stage {
  static constexpr int kLoads = T::kStageTiles * T::kBlockGroups / kWarps;
  static constexpr int kRows = std::max(1, T::kBlockGroups / kWarps);
  static_assert(kLoads * kWarps == T::kStageTiles * T::kBlockGroups);

  static __device__ int Group(int i) {
    return (threadIdx.x / kWarpThreads + i * kWarps) % T::kBlockGroups;
  }
  static __device__ int Tile(int i) {
    return (threadIdx.x / kWarpThreads + i * kWarps) / T::kBlockGroups;
  }
  __device__ void Load(const Work<T::kPanels>& work,
                       const float* const (&rows)[kRows], int first_tile) {
    const int lane = threadIdx.x % kWarpThreads;
#pragma unroll
    for (int s = 0; s < T::kStageTiles; ++s) {
      const int t = first_tile + s;
      if (t >= work.cut.num_tiles) continue;
      const ptrdiff_t at = work.steps.At(t) + lane;
#pragma unroll
      for (int p = 0; p < T::kPanels; ++p) {
        tiles[s][p] = __ldg(work.panels[p] + at);
      }
    }
#pragma unroll
    for (int i = 0; i < kLoads; ++i) {
      const int t = first_tile + Tile(i);
      if (t < work.cut.num_tiles) x[i] = LoadActivations(rows[i % kRows], t);
    }
  }

  uint4 tiles[T::kStageTiles][T::kPanels] = {};
  float4 x[kLoads] = {};
};

// Where chains end, as tiles go by.
class ChainWalk {
 public:
  __device__ explicit ChainWalk(const Cut& cut)
      : cut_(cut), left_(cut.TilesFrom(0)) {}
  __device__ bool EndsChain() { return --left_ == 0; }
  __device__ bool begins_slice() const { return chain_ == 0; }
  __device__ bool ends_slice() const {
    return chain_ == cut_.chains_a_slice - 1;
  }
  __device__ void NextChain() {
    chain_ = ends_slice() ? 0 : chain_ + 1;
    left_ = cut_.TilesFrom(chain_ * cut_.chain_tiles);
  }

 private:
  const Cut& cut_;
  int chain_ = 0;  // of the slice
  int left_;       // tiles of the chain
};

// What a warp has of its outputs and rows.
template <Numerics N, bool kSliced, class T>
struct Results {
  // A chain ends.
  __device__ void AddChains(bool begins_slice, bool ends_slice) {
#pragma unroll
    for (int p = 0; p < T::kPanels; ++p) {
#pragma unroll
      for (int q = 0; q < T::kGroups; ++q) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          totals[p][q][i].Add(sums[p][q][i], begins_slice, ends_slice);
          sums[p][q][i] = 0.0f;
        }
      }
    }
  }
  template <class Store>
  __device__ void StoreAll(int first_row, int num_rows,
                           const Store& store) const {
    const int lane = threadIdx.x % kWarpThreads;
#pragma unroll
    for (int q = 0; q < T::kGroups; ++q) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int row = first_row + q * kGroupRows + lane % 4 * 2 + i % 2;
        if (row >= num_rows) continue;
        typename Total<N, kSliced>::Value values[T::kPanels];
#pragma unroll
        for (int p = 0; p < T::kPanels; ++p) {
          values[p] = totals[p][q][i].value();
        }
        store(row, lane / 4 + i / 2 * 8, values);
      }
    }
  }

  float sums[T::kPanels][T::kGroups][4] = {};
  Total<N, kSliced> totals[T::kPanels][T::kGroups][4];
};

// As MultiplyFewRows; `work` and `store` are of the thread's warp.
template <Numerics N, bool kSliced, class T, class Store>
__device__ void MultiplyManyRows(const Work<T::kPanels>& work,
                                 const Store& store) {
  using S = Stage<T>;
  __shared__ Operand<N> staged[2][T::kStageTiles][T::kBlockGroups]
                              [kWarpThreads];
  const int lane = threadIdx.x % kWarpThreads;
  const int first_group =
      threadIdx.x / kWarpThreads / T::kWarpsOfOutputs * T::kGroups;
  const int num_groups = work.rows.num_groups() - first_group;
  const float* rows[S::kRows];
#pragma unroll
  for (int i = 0; i < S::kRows; ++i) {
    rows[i] = work.rows.Row(S::Group(i) * kGroupRows + lane / 4);
  }
  Results<N, kSliced, T> results;
  ChainWalk chains(work.cut);
  S next;
  next.Load(work, rows, 0);
  for (int t = 0; t < work.cut.num_tiles; t += T::kStageTiles) {
    const S now = next;
    auto& here = staged[t / T::kStageTiles % 2];
#pragma unroll
    for (int i = 0; i < S::kLoads; ++i) {
      here[S::Tile(i)][S::Group(i)][lane] = Split<N>(now.x[i]);
    }
    // Nobody reads this half any more: all have come by here since.
    __syncthreads();
    next.Load(work, rows, t + T::kStageTiles);
#pragma unroll
    for (int s = 0; s < T::kStageTiles; ++s) {
      if (t + s >= work.cut.num_tiles) continue;
#pragma unroll
      for (int q = 0; q < T::kGroups; ++q) {
        if (q >= num_groups) continue;
        const Operand<N> operand = here[s][first_group + q][lane];
#pragma unroll
        for (int p = 0; p < T::kPanels; ++p) {
          Multiply<N>(now.tiles[s][p], operand, results.sums[p][q]);
        }
      }
      if constexpr (N == Numerics::kExact) {
        if (!chains.EndsChain()) continue;
        results.AddChains(chains.begins_slice(), chains.ends_slice());
        chains.NextChain();
      }
    }
  }
  if constexpr (N == Numerics::kFast) results.AddChains(true, true);
  results.StoreAll(first_group * kGroupRows, work.rows.count, store);
}

template <Numerics N, bool kSliced, class T, class Store>
__device__ void MultiplyRows(const Work<T::kPanels>& work, const Store& store) {
  if constexpr (T::kMany) {
    MultiplyManyRows<N, kSliced, T>(work, store);
  } else {
    MultiplyFewRows<N, kSliced, T>(work, store);
  }
}

// Blocks that a multiprocessor has room for: what hides the time that memory
// takes to answer.
template <class T>
inline constexpr int kBlocks = T::kMany ? 1 : 2;

inline int DivideUp(int a, int b) { return (a + b - 1) / b; }

// Calls run(T()) with the kind of kernel for that many rows and panels, where
// weights are read once for a block of rows.
template <Numerics N, class Run>
void WithKind(const Cuda<N>& device, int rows, int panels, const Run& run) {
  using Large =
      std::conditional_t<N == Numerics::kExact, ManyRows<2, 4>, ManyRows<2, 8>>;
  const bool few_panels = panels < 2 * device.num_multiprocessors;
  if (rows <= 8)
    return few_panels ? run(FewRows<1, 1>()) : run(FewRows<2, 1>());
  if (rows <= 16) return run(FewRows<2, 2>());
  if (rows <= 32) return run(FewRows<2, 4>());
  const int blocks =
      DivideUp(panels, Large::kBlockPanels) * DivideUp(rows, Large::kBlockRows);
  if (blocks >= device.num_multiprocessors) return run(Large());
  run(ManyRows<1, 2>());
}

}  // namespace moebius::products
