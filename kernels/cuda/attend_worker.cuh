// How a block of threads attends a tile of queries (attend_tile.cuh).
#pragma once

#include <cuda_bf16.h>

#include <cstddef>
#include <cstdint>

#include "kernels/cuda/attend_tile.cuh"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/tensor_cores.cuh"

namespace moebius {

// Query number i of a tile is head i % group of row i / group.
template <class P>
class TileWorker {
 public:
  __device__ TileWorker(const AttendArguments& args, const QueryTile& tile,
                        std::byte* shared)
      : args_(args),
        tile_(tile),
        queries_(reinterpret_cast<__nv_bfloat16*>(shared)),
        stages_(queries_ + P::kQueryParts * P::kQueryMatrix),
        scores_(reinterpret_cast<float*>(stages_ +
                                         P::kStages * P::kParts * P::kMatrix)),
        warp_(static_cast<int>(threadIdx.x) / 32),
        lane_(static_cast<int>(threadIdx.x) % 32) {
    for (int r = 0; r < 2; ++r) {
      const int row = Query(r) / args.group;
      position_[r] = row < tile.num_rows ? tile.first_position + row : -1;
      first_seen_[r] = FirstSeen(args, position_[r]);
    }
    const int count = tile.num_rows * args.group;
    const int last = min(first_query() + kTileQueries, count) - 1;
    first_position_ = tile.first_position + first_query() / args.group;
    last_position_ =
        first_query() < count ? tile.first_position + last / args.group : -1;
    all_see_from_ = FirstSeen(args, last_position_);
    skipped_splits_ =
        FirstSeen(args, tile.first_position) / (P::kSplitBlocks * kBlockTokens);
  }

  // Goes through every `step`th split from the `first_split`th on of those that
  // some row sees.
  __device__ void Run(int first_split, int step) {
    BlockWalk<P::kSplitBlocks> walk(skipped_splits_ + first_split, step);
    const int num_tokens = tile_.first_position + tile_.num_rows;
    if (walk.block * kBlockTokens >= num_tokens) return WaitForEarlier();
    KvLoader<P> loader(args_, tile_, walk, stages_);
    WaitForEarlier();
    for (int i = 0; i < P::kStages - 1; ++i) loader.LoadNext();
    LoadQueries();
    sums_.Clear();
    WeightedSums<P::kWarpDims> total;
    if constexpr (kMerges) total.Clear();
    while (walk.block * kBlockTokens < num_tokens) {
      float scores[8][4];
      NextMatrix(loader);
      const bool seen = walk.block * kBlockTokens <= last_position_;
      if (seen) Scores(scores);
      NextStage();
      NextMatrix(loader);
      if (seen) {
        if constexpr (P::kShared) ReadScores(scores);
        AddBlock(scores, walk.block);
      }
      NextStage();
      const int split = walk.block / P::kSplitBlocks;
      const bool ends = walk.EndsSplit();
      walk.Next();
      if constexpr (kMerges) {
        if (!ends && walk.block * kBlockTokens < num_tokens) continue;
        if (IsPart()) {
          WritePartials(split - skipped_splits_);
        } else {
          total.Merge(sums_);
        }
        sums_.Clear();
      }
    }
    if (IsPart()) {
      if constexpr (!kMerges) WritePartials(first_split);
      return;
    }
    if constexpr (kMerges) {
      WriteResults(total);
    } else {
      WriteResults(sums_);
    }
  }

 private:
  // Without exactness a sum need not begin anew.
  static constexpr bool kMerges = P::kExact;

  // Whether somebody else merges the splits.
  __device__ bool IsPart() const {
    return P::kShared && args_.partials != nullptr;
  }

  __device__ int first_query() const {
    return P::kShared ? 0 : warp_ * kTileQueries;
  }
  __device__ int Query(int r) const {
    return first_query() + lane_ / 4 + 8 * r;
  }
  // Columns of a row of the step.
  __device__ float* HeadOf(int query) const {
    const int head = tile_.kv_head * args_.group + query % args_.group;
    return args_.queries +
           (tile_.first_row + query / args_.group) * args_.stride +
           head * args_.head_dim;
  }

  // Into shared memory, scaled and split.
  __device__ void LoadQueries() {
    constexpr int kPieces = P::kDim / 4;
    const int count = tile_.num_rows * args_.group;
    for (int at = static_cast<int>(threadIdx.x); at < P::kQueries * kPieces;
         at += P::kThreads) {
      const int query = at / kPieces, col = at % kPieces * 4;
      float4 x{};
      if (query < count && col < args_.head_dim) {
        x = *reinterpret_cast<const float4*>(HeadOf(query) + col);
      }
      x.x *= args_.scale;
      x.y *= args_.scale;
      x.z *= args_.scale;
      x.w *= args_.scale;
      const uint2 packed{PackBf16(x.x, x.y), PackBf16(x.z, x.w)};
      __nv_bfloat16* const to = queries_ + query * P::kStride + col;
      *reinterpret_cast<uint2*>(to) = packed;
      if constexpr (P::kQueryParts == 2) {
        *reinterpret_cast<uint2*>(to + P::kQueryMatrix) = {
            PackRest(x.x, x.y, packed.x), PackRest(x.z, x.w, packed.y)};
      }
    }
  }

  // Waits for the next matrix, and lets the loader fill the stage that was read
  // last. Whatever threads wrote to shared memory before is seen after.
  __device__ void NextMatrix(KvLoader<P>& loader) {
    if constexpr (P::kFloats) {
      __syncthreads();
      loader.LoadNext();
    } else {
      WaitForCopies<P::kStages - 2>();
    }
    __syncthreads();
    if constexpr (!P::kFloats) loader.LoadNext();
  }
  __device__ void NextStage() {
    stage_ = stage_ + 1 == P::kStages ? 0 : stage_ + 1;
  }
  __device__ const __nv_bfloat16* Matrix(int part) const {
    return stages_ + (stage_ * P::kParts + part) * P::kMatrix;
  }

  // scores[i] of tokens 8i .. 8i + 7 of the block; where warps share queries,
  // this warp's quarter of them, in shared memory.
  __device__ void Scores(float (&scores)[8][4]) {
    constexpr int kPairs = P::kShared ? 1 : 4;  // of 8 tokens
    const int first_pair = P::kShared ? warp_ : 0;
    float sums[2 * kPairs][4] = {};
#pragma unroll
    for (int k = 0; k < P::kDim; k += 16) {
      uint32_t query[P::kQueryParts][4];
#pragma unroll
      for (int part = 0; part < P::kQueryParts; ++part) {
        LoadMatrices(query[part],
                     queries_ + part * P::kQueryMatrix +
                         (first_query() + lane_ % 16) * P::kStride + k +
                         lane_ / 16 * 8);
      }
#pragma unroll
      for (int i = 0; i < kPairs; ++i) {
        const int at =
            ((first_pair + i) * 16 + lane_ / 16 * 8 + lane_ % 8) * P::kStride +
            k + lane_ / 8 % 2 * 8;
        uint32_t key[4];
        LoadMatrices(key, Matrix(0) + at);
#pragma unroll
        for (int part = 0; part < P::kQueryParts; ++part) {
          MultiplyTile(sums[2 * i], query[part], key[0], key[1]);
          MultiplyTile(sums[2 * i + 1], query[part], key[2], key[3]);
        }
        if constexpr (P::kParts == 2) {
          LoadMatrices(key, Matrix(1) + at);
          MultiplyTile(sums[2 * i], query[0], key[0], key[1]);
          MultiplyTile(sums[2 * i + 1], query[0], key[2], key[3]);
        }
      }
    }
#pragma unroll
    for (int i = 0; i < 2 * kPairs; ++i) {
      if constexpr (P::kShared) {
        float* const to = scores_ + lane_ / 4 * P::kScoreStride +
                          (2 * first_pair + i) * 8 + lane_ % 4 * 2;
        *reinterpret_cast<float2*>(to) = {sums[i][0], sums[i][1]};
        *reinterpret_cast<float2*>(to + 8 * P::kScoreStride) = {sums[i][2],
                                                                sums[i][3]};
      } else {
#pragma unroll
        for (int c = 0; c < 4; ++c) scores[i][c] = sums[i][c];
      }
    }
  }

  // All scores of the block, as if this warp had computed them.
  __device__ void ReadScores(float (&scores)[8][4]) const {
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const float* const from =
          scores_ + lane_ / 4 * P::kScoreStride + i * 8 + lane_ % 4 * 2;
      const float2 low = *reinterpret_cast<const float2*>(from);
      const float2 high =
          *reinterpret_cast<const float2*>(from + 8 * P::kScoreStride);
      scores[i][0] = low.x;
      scores[i][1] = low.y;
      scores[i][2] = high.x;
      scores[i][3] = high.y;
    }
  }

  // What queries do not see.
  __device__ void HideTokens(int first_token, float (&scores)[8][4]) const {
    const int first = first_token + lane_ % 4 * 2;
#pragma unroll
    for (int i = 0; i < 8; ++i) {
#pragma unroll
      for (int c = 0; c < 4; ++c) {
        const int token = first + 8 * i + c % 2;
        if (token > position_[c / 2] || token < first_seen_[c / 2]) {
          scores[i][c] = -INFINITY;
        }
      }
    }
  }

  // Scores become probabilities, relative to the maximum so far, and values
  // are added by them.
  __device__ void AddBlock(float (&scores)[8][4], int block) {
    const int first_token = block * kBlockTokens;
    if (first_token + kBlockTokens - 1 > first_position_ ||
        first_token < all_see_from_) {
      HideTokens(first_token, scores);
    }
    float seen[2] = {-INFINITY, -INFINITY};
#pragma unroll
    for (int i = 0; i < 8; ++i) {
#pragma unroll
      for (int c = 0; c < 4; ++c)
        seen[c / 2] = fmaxf(seen[c / 2], scores[i][c]);
    }
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      seen[r] = fmaxf(seen[r], __shfl_xor_sync(0xffffffffu, seen[r], 1));
      seen[r] = fmaxf(seen[r], __shfl_xor_sync(0xffffffffu, seen[r], 2));
    }
    sums_.Raise(seen);
    const float base[2] = {BaseOf(sums_.maximum[0]), BaseOf(sums_.maximum[1])};
#pragma unroll
    for (int i = 0; i < 8; ++i) {
#pragma unroll
      for (int c = 0; c < 4; ++c) {
        scores[i][c] = PowerOfTwo(scores[i][c] - base[c / 2]);
      }
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) AddValues(scores[2 * i], scores[2 * i + 1], i);
  }

  // Tokens 16i .. 16i + 15 of the block, by their probabilities: the sums of
  // scores are in the order that the product's first operand wants.
  __device__ void AddValues(const float (&low)[4], const float (&high)[4],
                            int i) {
    constexpr uint32_t kOnes = 0x3f803f80u;
    uint32_t p[P::kQueryParts][4] = {
        {PackBf16(low[0], low[1]), PackBf16(low[2], low[3]),
         PackBf16(high[0], high[1]), PackBf16(high[2], high[3])}};
    if constexpr (P::kQueryParts == 2) {
      p[1][0] = PackRest(low[0], low[1], p[0][0]);
      p[1][1] = PackRest(low[2], low[3], p[0][1]);
      p[1][2] = PackRest(high[0], high[1], p[0][2]);
      p[1][3] = PackRest(high[2], high[3], p[0][3]);
    }
#pragma unroll
    for (int part = 0; part < P::kQueryParts; ++part) {
      MultiplyTile(sums_.weights, p[part], kOnes, kOnes);
    }
    const int first_col = P::kShared ? warp_ * P::kWarpDims : 0;
    const int at =
        (i * 16 + lane_ % 16) * P::kStride + first_col + lane_ / 16 * 8;
#pragma unroll
    for (int j = 0; j < P::kWarpDims / 16; ++j) {
      uint32_t value[4];
      LoadTransposed(value, Matrix(0) + at + j * 16);
#pragma unroll
      for (int part = 0; part < P::kQueryParts; ++part) {
        MultiplyTile(sums_.values[2 * j], p[part], value[0], value[1]);
        MultiplyTile(sums_.values[2 * j + 1], p[part], value[2], value[3]);
      }
      if constexpr (P::kParts == 2) {
        LoadTransposed(value, Matrix(1) + at + j * 16);
        MultiplyTile(sums_.values[2 * j], p[0], value[0], value[1]);
        MultiplyTile(sums_.values[2 * j + 1], p[0], value[2], value[3]);
      }
    }
  }

  // Calls fn(r, col, i, c): values[i][c] and [c + 1] are columns `col` and the
  // next of query r of this thread.
  template <class Fn>
  __device__ void ForColumns(const Fn& fn) const {
    const int first_col =
        (P::kShared ? warp_ * P::kWarpDims : 0) + lane_ % 4 * 2;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      if (position_[r] < 0) continue;
#pragma unroll
      for (int i = 0; i < P::kWarpDims / 8; ++i) {
        const int col = first_col + 8 * i;
        if (col < args_.head_dim) fn(r, col, i, 2 * r);
      }
    }
  }

  __device__ void WriteResults(const WeightedSums<P::kWarpDims>& sums) const {
    float weights[2];
    for (int r = 0; r < 2; ++r) {
      const int head = tile_.kv_head * args_.group + Query(r) % args_.group;
      weights[r] =
          sums.weights[2 * r] + SinkWeight(args_, head, sums.maximum[r]);
    }
    ForColumns([&](int r, int col, int i, int c) {
      *reinterpret_cast<float2*>(HeadOf(Query(r)) + col) = {
          sums.values[i][c] / weights[r], sums.values[i][c + 1] / weights[r]};
    });
  }

  __device__ void WritePartials(int part) const {
    const int num_q = args_.num_kv * args_.group;
    const auto place = [&](int r) {
      const int head = tile_.kv_head * args_.group + Query(r) % args_.group;
      const int64_t at =
          (int64_t{tile_.chunk} * num_q + head) * args_.num_parts + part;
      return args_.partials + at * (args_.head_dim + 2);
    };
    ForColumns([&](int r, int col, int i, int c) {
      *reinterpret_cast<float2*>(place(r) + col) = {sums_.values[i][c],
                                                    sums_.values[i][c + 1]};
    });
    if (lane_ % 4 != 0 || (P::kShared && warp_ != 0)) return;
    for (int r = 0; r < 2; ++r) {
      if (position_[r] < 0) continue;
      *reinterpret_cast<float2*>(place(r) + args_.head_dim) = {
          sums_.weights[2 * r], sums_.maximum[r]};
    }
  }

  const AttendArguments& args_;
  const QueryTile& tile_;
  __nv_bfloat16* const queries_;  // [kQueryParts][kQueries][kStride]
  __nv_bfloat16* const stages_;   // [kStages][kParts][kBlockTokens][kStride]
  float* const scores_;           // [kTileQueries][kScoreStride], if shared
  const int warp_;
  const int lane_;
  int position_[2];     // of this thread's queries; -1: none
  int first_position_;  // of the warp's queries
  int last_position_;   // -1: it has none
  int first_seen_[2];   // by this thread's queries
  int all_see_from_;    // of the warp's queries
  int skipped_splits_;  // that no row sees
  int stage_ = 0;
  WeightedSums<P::kWarpDims> sums_;
};

}  // namespace moebius
