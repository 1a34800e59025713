// Attention of a tile of queries, the work of one block of threads.
//
// A query is one head of one row. Queries of a KV head share its keys and
// values, which are loaded by blocks of 64 positions, counted from 0 whatever
// the tile. For each block: scores, the running maximum, probabilities, and the
// weighted sum of values, rescaled when the maximum moves (online softmax:
// Milakov and Gimelshein 2018, arXiv 1805.02867; by tensor cores: Dao 2023,
// arXiv 2307.08691). The sum of probabilities is one more product, by a column
// of ones.
//
// Exact numerics: positions are cut in splits of 256. Each split begins anew,
// and the results of splits are merged in their order, by whomever: so it does
// not matter for the bits of a result whether one block of threads went through
// all splits of a row or each split had its own. An element of a product
// depends on its row and its column alone, so neither does it matter which
// queries share a tile. A block of positions behind a query's own changes
// nothing: its probabilities are zero, and factors one.
//
// With a window a block of threads begins with the split in which the first
// position is that its first row sees. What is before a query's own changes
// nothing either: it is nothing yet, and the next split is taken as it is.
//
// And queries and probabilities are split into two BF16 numbers, as are float32
// keys and values. Fast numerics: a block of threads begins once, and a split
// is what it takes at a time, 64 positions.
//
// Values are multiplied by zero where a query does not see them. So what is not
// finite spreads to earlier rows of its own chunk; what lies behind the tile's
// last position is never read.
#pragma once

#include <cuda_bf16.h>

#include <cstdint>
#include <type_traits>

#include "kernels/cuda/pages.cuh"
#include "kernels/cuda/rows.h"
#include "kernels/cuda/tensor_cores.cuh"

namespace moebius {

inline constexpr int kBlockTokens = 64;
inline constexpr int kBlockPages = kBlockTokens / kPageTokens;
inline constexpr int kTileQueries = 16;  // of one product

struct AttendArguments {
  float* queries = nullptr;  // and results
  ptrdiff_t stride = 0;
  LayerPages pages;
  const uint32_t* page_ids = nullptr;
  const int32_t* chunk_of = nullptr;
  const GpuChunk* chunks = nullptr;
  int num_rows = 0;
  int num_kv = 0;
  int group = 0;  // query heads of a KV head
  int head_dim = 0;
  float scale = 0.0f;  // of scores, whose exponentials are of base 2
  int window = 0;      // as KvLayer's
  const float* sinks = nullptr;
  // Results of parts, [chunk][query head][part][head_dim + 2]: the weighted
  // sum, the sum of the weights, and the maximum. A part is a split, or, fast,
  // what a block of threads has. Null: none are written, a block of threads
  // goes through all splits of its rows.
  float* partials = nullptr;
  int num_parts = 0;
};

// The first position that a row sees.
__host__ __device__ inline int FirstSeen(const AttendArguments& args,
                                         int position) {
  return args.window == 0 || position < args.window
             ? 0
             : position - args.window + 1;
}

// Rows of one chunk, and one KV head.
struct QueryTile {
  int first_row = 0;  // of the step
  int num_rows = 0;
  int first_position = 0;  // of first_row
  const uint32_t* page_ids = nullptr;
  int kv_head = 0;
  int chunk = 0;
};

template <Numerics N>
__host__ __device__ constexpr int SplitBlocks() {
  return N == Numerics::kExact ? 4 : 1;
}

// How a block of threads works. kDim is head_dim, or more: dimensions beyond
// head_dim are zeros.
//
//   kShared   4 warps share 16 queries of one row: each takes a quarter of the
//             scores of a block, and of the dimensions of the sum. Else every
//             warp has 16 queries of its own.
template <Numerics N, class T, int kDimensions, bool kSharedQueries>
struct AttendPlan {
  using Element = T;
  static constexpr bool kExact = N == Numerics::kExact;
  static constexpr bool kFloats = std::is_same_v<T, float>;
  static constexpr bool kShared = kSharedQueries;
  static constexpr int kDim = kDimensions;
  static constexpr int kWarps = !kShared && kExact && kDim == 128 ? 8 : 4;
  static constexpr int kThreads = 32 * kWarps;
  static constexpr int kSplitBlocks = SplitBlocks<N>();
  static_assert(kStretchTokens % (kSplitBlocks * kBlockTokens) == 0);
  static constexpr int kQueries = kTileQueries * (kShared ? 1 : kWarps);
  // BF16 numbers that a query, and a key or value, is the sum of.
  static constexpr int kQueryParts = kExact ? 2 : 1;
  static constexpr int kParts = kExact && kFloats ? 2 : 1;
  // Matrices of keys or values in shared memory, all but one of them ahead.
  // Floats are split on their way, and so are not copied ahead.
  static constexpr int kStages =
      kFloats ? 1 : (kShared ? (kDim > 128 ? 3 : 5) : (kDim > 128 ? 2 : 4));
  // Columns of the weighted sum that a warp has.
  static constexpr int kWarpDims = kShared ? kDim / 4 : kDim;
  // A row of 16 bytes more is in other banks than the one before.
  static constexpr int kStride = kDim + 8;
  static constexpr int kMatrix = kBlockTokens * kStride;
  static constexpr int kQueryMatrix = kQueries * kStride;
  static constexpr int kScoreStride = kBlockTokens + 8;
  static constexpr int kElements =
      kQueryParts * kQueryMatrix + kStages * kParts * kMatrix;
  static constexpr int kSharedBytes =
      2 * kElements + (kShared ? 4 * kTileQueries * kScoreStride : 0);
};

// The blocks of positions that a block of threads goes through: all of every
// `step`th split.
template <int kSplitBlocks>
struct BlockWalk {
  int block = 0;
  int step = 1;
  __device__ BlockWalk(int first_split, int step)
      : block(first_split * kSplitBlocks), step(step) {}
  __device__ bool EndsSplit() const {
    return block % kSplitBlocks == kSplitBlocks - 1;
  }
  __device__ void Next() {
    block += EndsSplit() ? 1 + (step - 1) * kSplitBlocks : 1;
  }
};

// Brings keys and values of the walk's blocks into shared memory, in turns. A
// thread brings pieces of 8 elements, of tokens that are kRoundTokens apart.
template <class P>
class KvLoader {
 public:
  __device__ KvLoader(const AttendArguments& args, const QueryTile& tile,
                      BlockWalk<P::kSplitBlocks> walk, __nv_bfloat16* stages)
      : args_(args),
        tile_(tile),
        num_tokens_(tile.first_position + tile.num_rows),
        token_(static_cast<int>(threadIdx.x) / kPieces),
        col_(static_cast<int>(threadIdx.x) % kPieces * 8),
        walk_(walk),
        stages_(stages) {
    FindPages();
  }

  // Begins to load the next matrix, if there is one.
  __device__ void LoadNext() {
    if (walk_.block * kBlockTokens < num_tokens_) {
      LoadMatrix(stages_ + stage_ * P::kParts * P::kMatrix);
      if (values_) {
        walk_.Next();
        FindPages();
      }
      values_ = !values_;
      stage_ = stage_ + 1 == P::kStages ? 0 : stage_ + 1;
    }
    if constexpr (!P::kFloats) EndCopies();
  }

 private:
  using Element = typename P::Element;
  static constexpr int kPieces = P::kDim / 8;  // of a token
  static constexpr int kRoundTokens = P::kThreads / kPieces;
  static constexpr int kPageRounds = kPageTokens / kRoundTokens;
  static_assert(kPageTokens % kRoundTokens == 0);

  // The ids come while other work is done: nothing waits for them before the
  // next keys are loaded.
  __device__ void FindPages() {
    const int last = (num_tokens_ - 1) / kPageTokens;
#pragma unroll
    for (int i = 0; i < kBlockPages; ++i) {
      const int at = walk_.block * kBlockPages + i;
      // A place to read from even where nothing is read.
      ids_[i] =
          at <= last ? tile_.page_ids[at * args_.num_kv + tile_.kv_head] : 0;
    }
  }

  // Where this thread's first piece of each page is.
  __device__ void FindPieces() {
#pragma unroll
    for (int i = 0; i < kBlockPages; ++i) {
      from_[i] = args_.pages.Token<const Element>(ids_[i], token_,
                                                  args_.head_dim, false) +
                 (col_ < args_.head_dim ? col_ : 0);
    }
  }

  __device__ void LoadMatrix(__nv_bfloat16* to) {
    if (!values_) FindPieces();
    const int left = num_tokens_ - walk_.block * kBlockTokens - token_;
    const bool inside = col_ < args_.head_dim;
    const size_t matrix =
        values_ ? args_.pages.matrix_bytes / sizeof(Element) : 0;
    to += token_ * P::kStride + col_;
#pragma unroll
    for (int i = 0; i < kBlockPages * kPageRounds; ++i) {
      const Element* const from =
          from_[i / kPageRounds] + matrix +
          i % kPageRounds * kRoundTokens * args_.head_dim;
      const bool there = inside && i * kRoundTokens < left;
      __nv_bfloat16* const row = to + i * kRoundTokens * P::kStride;
      if constexpr (P::kFloats) {
        SplitPiece(from, there, row);
      } else {
        CopyAhead(row, from, there);
      }
    }
  }

  static __device__ void SplitPiece(const float* from, bool there,
                                    __nv_bfloat16* to) {
    float4 low{}, high{};
    if (there) {
      low = reinterpret_cast<const float4*>(from)[0];
      high = reinterpret_cast<const float4*>(from)[1];
    }
    uint4 packed;
    packed.x = PackBf16(low.x, low.y);
    packed.y = PackBf16(low.z, low.w);
    packed.z = PackBf16(high.x, high.y);
    packed.w = PackBf16(high.z, high.w);
    *reinterpret_cast<uint4*>(to) = packed;
    if constexpr (P::kParts == 2) {
      uint4 rest;
      rest.x = PackRest(low.x, low.y, packed.x);
      rest.y = PackRest(low.z, low.w, packed.y);
      rest.z = PackRest(high.x, high.y, packed.z);
      rest.w = PackRest(high.z, high.w, packed.w);
      *reinterpret_cast<uint4*>(to + P::kMatrix) = rest;
    }
  }

  const AttendArguments& args_;
  const QueryTile& tile_;
  const int num_tokens_;
  const int token_;  // of the first piece
  const int col_;
  BlockWalk<P::kSplitBlocks> walk_;
  __nv_bfloat16* const stages_;
  uint32_t ids_[kBlockPages];
  const Element* from_[kBlockPages];  // of keys; values lie behind them
  int stage_ = 0;
  bool values_ = false;
};

// e^(x ln 2). Exactly 1 for 0, and 0 for -infinity.
__device__ inline float PowerOfTwo(float x) {
  float power;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(x));
  return power;
}

// What a maximum is subtracted as: nothing was seen while it is -infinity.
__device__ inline float BaseOf(float maximum) {
  return maximum == -INFINITY ? 0.0f : maximum;
}

// What a sink adds to the sum of the weights of a query head.
__device__ inline float SinkWeight(const AttendArguments& args, int head,
                                   float maximum) {
  constexpr float kLog2E = 1.4426950408889634f;
  if (args.sinks == nullptr) return 0.0f;
  return PowerOfTwo(fminf(args.sinks[head] * kLog2E - maximum, 120.0f));
}

// How two results go together, wherever they are: their factors, and sums.
struct MergeFactors {
  float maximum, first, second;
  __device__ MergeFactors(float first_maximum, float second_maximum)
      : maximum(fmaxf(first_maximum, second_maximum)),
        first(PowerOfTwo(first_maximum - BaseOf(maximum))),
        second(PowerOfTwo(second_maximum - BaseOf(maximum))) {}
  __device__ float Sum(float a, float b) const {
    return fmaf(b, second, a * first);
  }
};

// Weighted sums of a warp's 16 queries: a thread has two queries, g and g + 8
// (g = lane / 4), and of each 8 columns two, 2p and 2p + 1 (p = lane % 4), as
// the products give them.
template <int kCols>
struct WeightedSums {
  float values[kCols / 8][4];
  float weights[4];  // [0] of query g, [2] of g + 8
  float maximum[2];

  __device__ void Clear() {
#pragma unroll
    for (auto& tile : values) {
      for (float& value : tile) value = 0.0f;
    }
    for (float& weight : weights) weight = 0.0f;
    maximum[0] = maximum[1] = -INFINITY;
  }
  // Lets the maximum rise to at least `seen`.
  __device__ void Raise(const float (&seen)[2]) {
    float factor[2];
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const float before = maximum[r];
      maximum[r] = fmaxf(before, seen[r]);
      factor[r] = PowerOfTwo(before - BaseOf(maximum[r]));
    }
    // Most of the time it stays, and all factors are 1.
    if (__all_sync(0xffffffffu, factor[0] == 1.0f && factor[1] == 1.0f)) return;
#pragma unroll
    for (auto& tile : values) {
#pragma unroll
      for (int c = 0; c < 4; ++c) tile[c] *= factor[c / 2];
    }
#pragma unroll
    for (int c = 0; c < 4; ++c) weights[c] *= factor[c / 2];
  }
  // Adds the next split.
  __device__ void Merge(const WeightedSums& next) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const MergeFactors factors(maximum[r], next.maximum[r]);
      maximum[r] = factors.maximum;
#pragma unroll
      for (int i = 0; i < kCols / 8; ++i) {
#pragma unroll
        for (int c = 2 * r; c < 2 * r + 2; ++c) {
          values[i][c] = factors.Sum(values[i][c], next.values[i][c]);
        }
      }
      weights[2 * r] = factors.Sum(weights[2 * r], next.weights[2 * r]);
    }
  }
};

}  // namespace moebius
