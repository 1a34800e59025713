// A block's warps share the chains of its panels (products.cuh: FewRows).
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/cuda/tensor_tiles.cuh"

namespace moebius::products {

// The sums of one chain, and where they are kept in shared memory: rows of 16
// outputs and 4 more floats, so that the threads of a warp meet 32 banks.
inline constexpr int kKeptRow = 20;
inline constexpr int kKeptGroup = kGroupRows * kKeptRow;

template <Numerics N, class T>
__device__ inline void RunChain(const Work<T>& work,
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
        Multiply<N>(tiles[b], Split<N>(x[b][q]), sums, q);
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

// Adds the sums that were kept of chains [begin, end).
template <Numerics N, bool kSliced, class T>
__device__ inline void AddKept(const float* kept, const Cut& cut, int begin,
                               int end,
                               Total<N, kSliced> (&totals)[T::kPanels]) {
  constexpr int kChainFloats = T::kBlockPanels * T::kGroups * kKeptGroup;
  for (int c = begin; c < end; ++c, kept += kChainFloats) {
    const int in_slice = c % cut.chains_a_slice;
#pragma unroll
    for (int p = 0; p < T::kPanels; ++p) {
      totals[p].Add(kept[p * T::kGroups * kKeptGroup], in_slice == 0,
                    in_slice == cut.chains_a_slice - 1);
    }
  }
}

// Output number `index` of those that threads share when chains are added: of
// kPanels panels of the block, from `panel` on.
template <class T>
struct SharedOutput {
  __device__ explicit SharedOutput(int index)
      : output(index % kTileRows),
        row(index / kTileRows % T::kBlockRows),
        panel(index / kTileRows / T::kBlockRows * T::kPanels) {}
  __device__ int kept_at() const {
    return (panel * T::kGroups + row / kGroupRows) * kKeptGroup +
           row % kGroupRows * kKeptRow + output;
  }
  int output, row, panel;
};

// store(panel, row, output, values) is called once for each row and each of the
// 16 outputs of a panel, with the values of kPanels panels of the block from
// `panel` on.
template <Numerics N, bool kSliced, class T, class Store>
__device__ void MultiplyFewRows(const Work<T>& work, const Store& store) {
  using Sum = Total<N, kSliced>;
  constexpr int kChainFloats = T::kBlockPanels * T::kGroups * kKeptGroup;
  constexpr int kOutputs = T::kSplits * T::kBlockRows * kTileRows;
  constexpr int kShare = (kOutputs + kThreads - 1) / kThreads;
  __shared__ float kept[T::kPassChains * kChainFloats];
  const Cut& cut = work.cut;
  const int chain_warp = threadIdx.x / kWarpThreads % T::kChainWarps;
  float* const keep = kept + T::ReadPanel() * T::kGroups * kKeptGroup;
  const float* rows[T::kGroups];
#pragma unroll
  for (int q = 0; q < T::kGroups; ++q) {
    rows[q] = work.rows.Row(q * kGroupRows + threadIdx.x % kWarpThreads / 4);
  }
  Sum totals[kShare][T::kPanels];
  for (int begin = 0; begin < cut.num_chains; begin += T::kPassChains) {
    const int end = min(begin + T::kPassChains, cut.num_chains);
    for (int c = begin + chain_warp; c < end; c += T::kChainWarps) {
      const int in_slice = c % cut.chains_a_slice * cut.chain_tiles;
      const int slice = c / cut.chains_a_slice;
      float sums[T::kPanels][T::kGroups][4] = {};
      RunChain<N, T>(work, rows, slice * cut.slice_tiles + in_slice,
                     cut.TilesFrom(in_slice), sums);
      Keep<T>(sums, keep + (c - begin) * kChainFloats);
    }
    __syncthreads();
#pragma unroll
    for (int i = 0; i < kShare; ++i) {
      const SharedOutput<T> at(threadIdx.x + i * kThreads);
      if (at.panel >= T::kBlockPanels || at.row >= work.rows.count) continue;
      AddKept<N, kSliced, T>(kept + at.kept_at(), cut, begin, end, totals[i]);
    }
    __syncthreads();
  }
#pragma unroll
  for (int i = 0; i < kShare; ++i) {
    const SharedOutput<T> at(threadIdx.x + i * kThreads);
    if (at.panel >= T::kBlockPanels || at.row >= work.rows.count) continue;
    typename Sum::Value values[T::kPanels];
#pragma unroll
    for (int p = 0; p < T::kPanels; ++p) values[p] = totals[i][p].value();
    store(at.panel, at.row, at.output, values);
  }
}

}  // namespace moebius::products
