// A block's warps share outputs and rows (products.cuh: ManyRows). What they
// multiply goes through a ring of stages in shared memory.
#pragma once

#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "kernels/cuda/tensor_tiles.cuh"

namespace moebius::products {

// Copies 16 bytes to shared memory while the thread goes on: the first `bytes`
// of `from`, then zeros.
__device__ inline void CopyAhead(std::byte* to, const void* from, int bytes) {
  const auto at = static_cast<uint32_t>(__cvta_generic_to_shared(to));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
               :
               : "r"(at), "l"(from), "r"(bytes)
               : "memory");
}
// Copies from here on are another group.
__device__ inline void EndCopies() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}
// Until all groups but the latest kPending ones have come.
template <int kPending>
__device__ inline void AwaitCopies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

// The ring of stages. The threads share what is read of each: 16 bytes of
// tiles, and of rows, at a time. Pointers go along with the stages, since a
// warp has little to do while it waits for an address.
template <class T>
class Ring {
 public:
  static constexpr int kRowWords = T::kStageTiles * kTileRows / 4;
  static constexpr int kTileLoads = T::kStageWords / kThreads;
  static constexpr int kRowLoads = T::kBlockRows * kRowWords / kThreads;
  static constexpr int kTileStep = kWarps / T::kBlockPanels;
  static_assert(kTileLoads * kThreads == T::kStageWords);
  static_assert(kRowLoads * kThreads == T::kBlockRows * kRowWords);

  __device__ Ring(const Work<T>& work, std::byte* shared)
      : steps_(work.steps), to_(shared) {
    const int row = threadIdx.x / kRowWords, col = threadIdx.x % kRowWords * 4;
    row_at_ = (row * T::kRowPitch + col) * 4;
    rows_left_ = work.cut.num_tiles - col / kTileRows;
#pragma unroll
    for (int i = 0; i < kRowLoads; ++i) {
      const float* const from = work.rows.Row(row + i * (kThreads / kRowWords));
      row_bytes_[i] = from == nullptr ? 0 : 16;
      rows_[i] = (from == nullptr ? work.rows.data : from) + col;
    }
    const int first = threadIdx.x / kWarpThreads / T::kBlockPanels;
    tiles_left_ = work.cut.num_tiles - first;
#pragma unroll
    for (int i = 0; i < kTileLoads; ++i) {
      const int t = first + i * kTileStep;
      tiles_[i] = work.panels[0] + steps_.At(t) + threadIdx.x % kWarpThreads;
      piece_left_[i] = steps_.piece_tiles - t % steps_.piece_tiles;
    }
  }

  // Begins to read the next stage.
  __device__ void Read() {
    std::byte* const tiles = to_ + threadIdx.x * 16;
#pragma unroll
    for (int i = 0; i < kTileLoads; ++i) {
      if (i * kTileStep >= tiles_left_) continue;
      CopyAhead(tiles + i * kThreads * 16, tiles_[i], 16);
      tiles_[i] += T::kStageTiles * steps_.tile;
      for (piece_left_[i] -= T::kStageTiles; piece_left_[i] <= 0;
           piece_left_[i] += steps_.piece_tiles) {
        tiles_[i] += steps_.piece - steps_.piece_tiles * steps_.tile;
      }
    }
    tiles_left_ -= T::kStageTiles;
    if (rows_left_ > 0) {
      std::byte* const rows = to_ + T::kStageWords * 16 + row_at_;
#pragma unroll
      for (int i = 0; i < kRowLoads; ++i) {
        CopyAhead(rows + i * (kThreads / kRowWords) * T::kRowPitch * 4,
                  rows_[i], row_bytes_[i]);
        rows_[i] += T::kStageTiles * kTileRows;
      }
    }
    rows_left_ -= T::kStageTiles;
    to_ += T::kStageBytes;
    if (++stage_ == T::kStages) {
      stage_ = 0;
      to_ -= T::kSharedBytes;
    }
  }

 private:
  const TileSteps steps_;
  std::byte* to_;  // of the stage that is read next
  int stage_ = 0;
  const uint4* tiles_[kTileLoads];
  int piece_left_[kTileLoads];  // tiles to the end of the piece
  int tiles_left_;
  const float* rows_[kRowLoads];
  int row_bytes_[kRowLoads];  // 0: no such row
  int row_at_;
  int rows_left_;  // tiles
};

// Where chains end, as tiles go by.
class ChainWalk {
 public:
  __device__ explicit ChainWalk(const Cut& cut)
      : cut_(cut), left_(cut.TilesFrom(0)) {}
  __device__ int left() const { return left_; }  // tiles of the chain
  __device__ void Pass(int num_tiles) { left_ -= num_tiles; }
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
  int left_;
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
  __device__ void StoreAll(int first_panel, int first_row, int num_rows,
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
        store(first_panel, row, lane / 4 + i / 2 * 8, values);
      }
    }
  }

  float sums[T::kPanels][T::kGroups][4] = {};
  Total<N, kSliced> totals[T::kPanels][T::kGroups][4];
};

// kTiles tiles of each of the warp's panels with all of its groups of rows, or
// with the first num_groups. Straight code, so that reads of later tiles go
// before the products of earlier ones.
template <Numerics N, class T, int kTiles, bool kAll>
__device__ inline void MultiplyTiles(const uint4* tiles, const float* rows,
                                     int num_groups,
                                     float (&sums)[T::kPanels][T::kGroups][4]) {
#pragma unroll
  for (int s = 0; s < kTiles; ++s) {
    uint4 a[T::kPanels];
#pragma unroll
    for (int p = 0; p < T::kPanels; ++p) {
      a[p] = tiles[(s * T::kBlockPanels + p) * kTileWords];
    }
#pragma unroll
    for (int q = 0; q < T::kGroups; ++q) {
      if (!kAll && q >= num_groups) continue;
      const float* const at =
          rows + s * kTileRows + q * kGroupRows * T::kRowPitch;
      const float2 front = *reinterpret_cast<const float2*>(at);
      const float2 back = *reinterpret_cast<const float2*>(at + kTileRows / 2);
      Multiply<N>(a, Split<N>({front.x, front.y, back.x, back.y}), sums, q);
    }
  }
}

// As many of the next `most` tiles as go at once, at least one. Returns how
// many.
template <Numerics N, class T>
__device__ inline int MultiplySome(const uint4* tiles, const float* rows,
                                   int num_groups, int most,
                                   float (&sums)[T::kPanels][T::kGroups][4]) {
  const auto multiply = [&]<int kTiles>(std::integral_constant<int, kTiles>) {
    if (num_groups >= T::kGroups) {
      MultiplyTiles<N, T, kTiles, true>(tiles, rows, num_groups, sums);
    } else if (num_groups > 0) {
      MultiplyTiles<N, T, kTiles, false>(tiles, rows, num_groups, sums);
    }
    return kTiles;
  };
  if constexpr (T::kStageTiles >= 4) {
    if (most >= 4) return multiply(std::integral_constant<int, 4>());
  }
  if (most >= 2) return multiply(std::integral_constant<int, 2>());
  return multiply(std::integral_constant<int, 1>());
}

// As MultiplyFewRows.
template <Numerics N, bool kSliced, class T, class Store>
__device__ void MultiplyManyRows(const Work<T>& work, const Store& store) {
  extern __shared__ __align__(16) std::byte shared[];
  const int lane = threadIdx.x % kWarpThreads;
  const int warp = threadIdx.x / kWarpThreads;
  const int first_panel = warp % T::kWarpsOfOutputs * T::kPanels;
  const int first_group = warp / T::kWarpsOfOutputs * T::kGroups;
  const int num_groups = work.rows.num_groups() - first_group;
  const int num_tiles = work.cut.num_tiles;
  const int tile_at = (first_panel * kTileWords + lane) * 16;
  const int row_at =
      T::kStageWords * 16 +
      ((first_group * kGroupRows + lane / 4) * T::kRowPitch + lane % 4 * 2) * 4;
  Results<N, kSliced, T> results;
  ChainWalk chains(work.cut);
  Ring<T> ring(work, shared);
  for (int i = 0; i < T::kStages - 1; ++i) {
    ring.Read();
    EndCopies();
  }
  const std::byte* from = shared;
  for (int t = 0; t < num_tiles; t += T::kStageTiles) {
    AwaitCopies<T::kStages - 2>();
    // All have what all have read, and are done with the stage before.
    __syncthreads();
    ring.Read();
    EndCopies();
    const auto* const tiles = reinterpret_cast<const uint4*>(from + tile_at);
    const auto* const rows = reinterpret_cast<const float*>(from + row_at);
    const int end = min(num_tiles - t, T::kStageTiles);
    for (int s = 0; s < end;) {
      const int most =
          N == Numerics::kExact ? min(end - s, chains.left()) : end - s;
      const int done = MultiplySome<N, T>(
          tiles + s * T::kBlockPanels * kTileWords, rows + s * kTileRows,
          num_groups, most, results.sums);
      s += done;
      if constexpr (N == Numerics::kExact) {
        chains.Pass(done);
        if (chains.left() > 0) continue;
        results.AddChains(chains.begins_slice(), chains.ends_slice());
        chains.NextChain();
      }
    }
    from += T::kStageBytes;
    if (from == shared + T::kSharedBytes) from = shared;
  }
  if constexpr (N == Numerics::kFast) results.AddChains(true, true);
  results.StoreAll(first_panel, first_group * kGroupRows, work.rows.count,
                   store);
}

}  // namespace moebius::products
