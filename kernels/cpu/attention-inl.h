// Attention of a tile of queries, for one instruction set. Included once a
// target by attention_cpu.cc.
//
// A query is one head of one row. For each block of 64 positions, counted from
// 0 whatever the tile: scores of the valid positions, the running maximum,
// probabilities, and the weighted sum of V, rescaled when the maximum moves
// (online softmax: Milakov and Gimelshein 2018, arXiv 1805.02867). The sum of V
// is kept apart for even and odd positions, to have twice as many independent
// chains. Nothing done for a query looks at another.

#if defined(MOEBIUS_KERNELS_ATTENTION_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef MOEBIUS_KERNELS_ATTENTION_INL_H_
#undef MOEBIUS_KERNELS_ATTENTION_INL_H_
#else
#define MOEBIUS_KERNELS_ATTENTION_INL_H_
#endif

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <limits>
#include <vector>

#include "hwy/cache_control.h"
#include "hwy/highway.h"
#include "kernels/cpu/attention.h"
#include "kernels/cpu/exp-inl.h"
#include "kernels/cpu/gemm-inl.h"

#ifndef MOEBIUS_KERNELS_ATTENTION_TILE_
#define MOEBIUS_KERNELS_ATTENTION_TILE_
namespace moebius {

struct AttentionTile {
  const QueryChunk* chunk = nullptr;
  int first_row = 0;  // in the chunk
  int num_rows = 0;
  int kv_head = 0;
  int num_kv_heads = 0;
  int group = 0;  // query heads of a KV head
  int layer = 0;
  int window = 0;                // as KvLayer's
  const float* sinks = nullptr;  // [group], of the tile's heads
};

inline constexpr int kBlockPages = 4;
inline constexpr int kBlockTokens = kBlockPages * kPageTokens;
static_assert(kStretchTokens % kBlockTokens == 0);

// Scratch memory of one thread, by query.
struct AttentionScratch {
  std::vector<float> query;    // [queries][head_dim], times the scale
  std::vector<float> value;    // [queries][2][head_dim]: even, odd positions
  std::vector<float> sum;      // [queries][16]
  std::vector<float> maximum;  // [queries]
  std::vector<int> length;     // [queries] behind the last position seen
  std::vector<int> begin;      // [queries] the first position seen
  void Resize(int queries, int head_dim) {
    query.resize(static_cast<size_t>(queries) * head_dim);
    value.assign(static_cast<size_t>(queries) * 2 * head_dim, 0.0f);
    sum.assign(static_cast<size_t>(queries) * kPanelRows, 0.0f);
    maximum.assign(queries, -std::numeric_limits<float>::infinity());
    length.resize(queries);
    begin.resize(queries);
  }
};

}  // namespace moebius
#endif

HWY_BEFORE_NAMESPACE();
namespace moebius {
namespace HWY_NAMESPACE {

// Queries, pages and groups of 16 dimensions that are worked on together.
inline constexpr int kMaxQueries = kVecs == 1 ? 4 : kVecs <= 4 ? 2 : 1;
inline constexpr int kMaxPages = kMaxQueries;
inline constexpr int kMaxDims = kVecs == 1 ? 2 : 1;

HWY_INLINE PanelVec LoadElements(const float* from) {
  return hn::LoadU(PanelFloats(), from);
}
HWY_INLINE PanelVec LoadElements(const Bf16* from) {
  const PanelFloats df;
  const PanelWords du;
  const hn::Rebind<uint16_t, PanelFloats> dh;
  const auto bits = hn::LoadU(dh, reinterpret_cast<const uint16_t*>(from));
  return hn::BitCast(df, hn::ShiftLeft<16>(hn::PromoteTo(du, bits)));
}

// Keeps a vector that was loaded once in a register: the compiler would read
// it from memory again at every use, and loads are what is short here.
template <typename V>
HWY_INLINE void KeepInRegister(V& v) {
#if HWY_TARGET == HWY_AVX3 || HWY_TARGET == HWY_AVX2
  asm("" : "+v"(v.raw));
#else
  (void)v;
#endif
}

// scores[r * kBlockTokens + 16 g + t] = query r . K of token t of page g. While
// it goes through K it reads V of the same page ahead, which lies behind K.
template <typename T, int kQueries, int kPages>
HWY_INLINE void Scores(const float* query, int head_dim, const T* const* k,
                       float* scores) {
  const PanelFloats df;
  PanelVec acc[kQueries][kPages][kVecs];
  MOEBIUS_UNROLL
  for (int r = 0; r < kQueries; ++r) {
    MOEBIUS_UNROLL
    for (int g = 0; g < kPages; ++g) {
      MOEBIUS_UNROLL
      for (int v = 0; v < kVecs; ++v) acc[r][g][v] = hn::Zero(df);
    }
  }
  const T* pages[kPages];
  MOEBIUS_UNROLL
  for (int g = 0; g < kPages; ++g) pages[g] = k[g];
  const ptrdiff_t v_offset = ptrdiff_t{head_dim} * kPageTokens;
  for (ptrdiff_t i = 0; i < head_dim; ++i) {
    PanelVec keys[kPages][kVecs];
    MOEBIUS_UNROLL
    for (int g = 0; g < kPages; ++g) {
      hwy::Prefetch(pages[g] + v_offset + i * kPageTokens);
      MOEBIUS_UNROLL
      for (int v = 0; v < kVecs; ++v) {
        PanelVec key = LoadElements(pages[g] + i * kPageTokens + v * kVecLanes);
        if constexpr (kQueries > 1) KeepInRegister(key);
        keys[g][v] = key;
      }
    }
    MOEBIUS_UNROLL
    for (int r = 0; r < kQueries; ++r) {
      const PanelVec x = hn::Set(df, query[r * ptrdiff_t{head_dim} + i]);
      MOEBIUS_UNROLL
      for (int g = 0; g < kPages; ++g) {
        MOEBIUS_UNROLL
        for (int v = 0; v < kVecs; ++v) {
          acc[r][g][v] = hn::MulAdd(keys[g][v], x, acc[r][g][v]);
        }
      }
    }
  }
  MOEBIUS_UNROLL
  for (int r = 0; r < kQueries; ++r) {
    MOEBIUS_UNROLL
    for (int g = 0; g < kPages; ++g) {
      MOEBIUS_UNROLL
      for (int v = 0; v < kVecs; ++v) {
        hn::StoreU(acc[r][g][v], df,
                   scores + r * kBlockTokens + g * kPageTokens + v * kVecLanes);
      }
    }
  }
}

template <typename T, int kQueries, int kPages = kMaxPages>
HWY_INLINE void BlockScores(const float* query, int head_dim, const T* const* k,
                            int pages, float* scores) {
  int g = 0;
  for (; g + kPages <= pages; g += kPages) {
    Scores<T, kQueries, kPages>(query, head_dim, k + g,
                                scores + g * kPageTokens);
  }
  if constexpr (kPages > 1) {
    if (g < pages) {
      BlockScores<T, kQueries, kPages / 2>(query, head_dim, k + g, pages - g,
                                           scores + g * kPageTokens);
    }
  }
}

// Positions [begin, end) of a block.
struct Seen {
  int begin = 0;
  int end = 0;
};

// Turns the scores of a query into probabilities relative to the new maximum,
// zero for what it does not see; returns the factor by which earlier sums must
// shrink.
HWY_INLINE float SoftmaxBlock(float* scores, Seen seen, float* maximum,
                              float* sum) {
  const int count = seen.end;
  const PanelFloats df;
  const auto minus_infinity =
      hn::Set(df, -std::numeric_limits<float>::infinity());
  const int vectors = (count + kVecLanes - 1) / kVecLanes;
  const int full = count / kVecLanes;
  if (full < vectors) {
    float* tail = scores + full * kVecLanes;
    const auto valid = hn::FirstN(df, count - full * kVecLanes);
    hn::StoreU(hn::IfThenElse(valid, hn::LoadU(df, tail), minus_infinity), df,
               tail);
  }
  for (int i = 0; i * kVecLanes < seen.begin; ++i) {
    float* at = scores + i * kVecLanes;
    const auto hidden = hn::FirstN(df, seen.begin - i * kVecLanes);
    hn::StoreU(hn::IfThenElse(hidden, minus_infinity, hn::LoadU(df, at)), df,
               at);
  }
  auto highest = minus_infinity;
  for (int i = 0; i < vectors; ++i) {
    highest = hn::Max(highest, hn::LoadU(df, scores + i * kVecLanes));
  }
  const float old_maximum = *maximum;
  const float new_maximum =
      std::max(old_maximum, hn::GetLane(hn::MaxOfLanes(df, highest)));
  const auto shift = hn::Set(df, new_maximum);
  const float factor =
      old_maximum == new_maximum
          ? 1.0f
          : hn::GetLane(FastExp(df, hn::Sub(hn::Set(df, old_maximum), shift)));
  const auto shrink = hn::Set(df, factor);
  PanelVec sums[kVecs];
  MOEBIUS_UNROLL
  for (int v = 0; v < kVecs; ++v) {
    sums[v] = hn::Mul(hn::LoadU(df, sum + v * kVecLanes), shrink);
  }
  for (int i = 0; i < vectors; ++i) {
    float* at = scores + i * kVecLanes;
    const auto p = FastExp(df, hn::Sub(hn::LoadU(df, at), shift));
    hn::StoreU(p, df, at);
    sums[i % kVecs] = hn::Add(sums[i % kVecs], p);
  }
  MOEBIUS_UNROLL
  for (int v = 0; v < kVecs; ++v) {
    hn::StoreU(sums[v], df, sum + v * kVecLanes);
  }
  *maximum = new_maximum;
  return factor;
}

// value[r] = factor[r] * value[r] + sum of p[r][t] V[t] over t in [begin, end)
// for kDims groups of 16 dimensions, even and odd t apart.
//   v      [4] V of each page, at the first of these dimensions
//   ahead  [4] read ahead at the same places: K of the next block
//   value  at these dimensions; the odd sums are head_dim further on
template <typename T, int kQueries, int kDims>
HWY_INLINE void AddValues(const float* p, const T* const* v,
                          const T* const* ahead, int head_dim, int begin,
                          int end, const float* factor, float* value) {
  const PanelFloats df;
  const ptrdiff_t stride = 2 * ptrdiff_t{head_dim};
  PanelVec acc[2][kQueries][kDims * kVecs];
  MOEBIUS_UNROLL
  for (int odd = 0; odd < 2; ++odd) {
    MOEBIUS_UNROLL
    for (int r = 0; r < kQueries; ++r) {
      const float* from = value + r * stride + odd * head_dim;
      MOEBIUS_UNROLL
      for (int j = 0; j < kDims * kVecs; ++j) {
        acc[odd][r][j] = hn::Mul(hn::LoadU(df, from + j * kVecLanes),
                                 hn::Set(df, factor[r]));
      }
    }
  }
  const auto step = [&](int t, const T* row,
                        PanelVec(&sums)[kQueries][kDims * kVecs]) HWY_ATTR {
    PanelVec values[kDims * kVecs];
    MOEBIUS_UNROLL
    for (int j = 0; j < kDims * kVecs; ++j) {
      PanelVec value_row = LoadElements(row + j * kVecLanes);
      if constexpr (kQueries > 1) KeepInRegister(value_row);
      values[j] = value_row;
    }
    MOEBIUS_UNROLL
    for (int r = 0; r < kQueries; ++r) {
      const PanelVec weight = hn::Set(df, p[r * kBlockTokens + t]);
      MOEBIUS_UNROLL
      for (int j = 0; j < kDims * kVecs; ++j) {
        sums[r][j] = hn::MulAdd(values[j], weight, sums[r][j]);
      }
    }
  };
  int t = begin;
  while (t < end) {
    const int page_end = std::min(end, (t / kPageTokens + 1) * kPageTokens);
    const ptrdiff_t offset = ptrdiff_t{t % kPageTokens} * head_dim;
    const T* row = v[t / kPageTokens] + offset;
    const ptrdiff_t distance = ahead[t / kPageTokens] - v[t / kPageTokens];
    if (t % 2 != 0) {
      step(t, row, acc[1]);
      ++t;
      row += head_dim;
    }
    for (; t + 2 <= page_end; t += 2, row += 2 * ptrdiff_t{head_dim}) {
      MOEBIUS_UNROLL
      for (int j = 0; j < kDims; ++j) {
        hwy::Prefetch(row + distance + j * kPanelRows);
        hwy::Prefetch(row + distance + head_dim + j * kPanelRows);
      }
      step(t, row, acc[0]);
      step(t + 1, row + head_dim, acc[1]);
    }
    if (t < page_end) {
      step(t, row, acc[0]);
      ++t;
    }
  }
  MOEBIUS_UNROLL
  for (int odd = 0; odd < 2; ++odd) {
    MOEBIUS_UNROLL
    for (int r = 0; r < kQueries; ++r) {
      float* to = value + r * stride + odd * head_dim;
      MOEBIUS_UNROLL
      for (int j = 0; j < kDims * kVecs; ++j) {
        hn::StoreU(acc[odd][r][j], df, to + j * kVecLanes);
      }
    }
  }
}

template <typename T, int kQueries>
HWY_INLINE void BlockValues(const float* p, const T* const* v,
                            const T* const* ahead, int head_dim, int begin,
                            int end, const float* factor, float* value) {
  const T* at[kBlockPages];
  const T* ahead_at[kBlockPages];
  int i = 0;
  const auto move_to = [&](int dim) {
    for (int g = 0; g * kPageTokens < end; ++g) {
      at[g] = v[g] + dim;
      ahead_at[g] = ahead[g] + dim;
    }
  };
  if constexpr (kMaxDims == 2) {
    for (; i + 2 * kPanelRows <= head_dim; i += 2 * kPanelRows) {
      move_to(i);
      AddValues<T, kQueries, 2>(p, at, ahead_at, head_dim, begin, end, factor,
                                value + i);
    }
  }
  for (; i < head_dim; i += kPanelRows) {
    move_to(i);
    AddValues<T, kQueries, 1>(p, at, ahead_at, head_dim, begin, end, factor,
                              value + i);
  }
}

// One block of up to 64 positions for queries [first, first + kQueries).
//   k, v    [pages of the block]
//   next_k  [pages of the block] K of the next block, to read ahead
//   before  positions before the block
template <typename T, int kQueries>
HWY_INLINE void AttendBlock(int first, int head_dim, const T* const* k,
                            const T* const* v, const T* const* next_k,
                            int before, AttentionScratch& scratch) {
  HWY_ALIGN float p[kQueries * kBlockTokens];
  Seen seen[kQueries];
  int least = kBlockTokens, most = 0;
  MOEBIUS_UNROLL
  for (int r = 0; r < kQueries; ++r) {
    const int end =
        std::clamp(scratch.length[first + r] - before, 0, kBlockTokens);
    const int begin = std::clamp(scratch.begin[first + r] - before, 0, end);
    seen[r] = begin == end ? Seen{} : Seen{begin, end};
    // Where some see only the end of a block, each goes by itself.
    least = begin > 0 ? 0 : std::min(least, seen[r].end);
    most = std::max(most, seen[r].end);
  }
  if (most == 0) return;
  const ptrdiff_t query_at = ptrdiff_t{first} * head_dim;
  BlockScores<T, kQueries>(scratch.query.data() + query_at, head_dim, k,
                           (most + kPageTokens - 1) / kPageTokens, p);
  float factors[kQueries];
  MOEBIUS_UNROLL
  for (int r = 0; r < kQueries; ++r) {
    factors[r] = 1.0f;
    if (seen[r].end == 0) continue;
    factors[r] =
        SoftmaxBlock(p + r * kBlockTokens, seen[r], &scratch.maximum[first + r],
                     scratch.sum.data() + ptrdiff_t{first + r} * kPanelRows);
  }
  float* value = scratch.value.data() + 2 * query_at;
  BlockValues<T, kQueries>(p, v, next_k, head_dim, 0, least, factors, value);
  const float keep = 1.0f;
  MOEBIUS_UNROLL
  for (int r = 0; r < kQueries; ++r) {
    if (seen[r].end == least) continue;
    BlockValues<T, 1>(p + r * kBlockTokens, v, next_k, head_dim,
                      std::max(least, seen[r].begin), seen[r].end, &keep,
                      value + ptrdiff_t{r} * 2 * head_dim);
  }
}

// What the tile's queries have seen becomes their results.
HWY_INLINE void WriteResults(const AttentionTile& tile, int head_dim,
                             const AttentionScratch& scratch, Rows out) {
  const PanelFloats df;
  const QueryChunk& chunk = *tile.chunk;
  const int queries = tile.num_rows * tile.group;
  const ptrdiff_t first_column =
      ptrdiff_t{tile.kv_head} * tile.group * head_dim;
  for (int i = 0; i < queries; ++i) {
    const int row = tile.first_row + i / tile.group;
    float* to = out.row(chunk.first_row + row) + first_column +
                ptrdiff_t{i % tile.group} * head_dim;
    const float* even = scratch.value.data() + ptrdiff_t{i} * 2 * head_dim;
    auto sum = hn::Zero(df);
    MOEBIUS_UNROLL
    for (int v = 0; v < kVecs; ++v) {
      sum = hn::Add(sum, hn::LoadU(df, scratch.sum.data() + i * kPanelRows +
                                           v * kVecLanes));
    }
    float total = hn::GetLane(hn::SumOfLanes(df, sum));
    if (tile.sinks != nullptr) {
      // Never infinite: a sink far above the scores takes all the weight.
      const float relative = tile.sinks[i % tile.group] - scratch.maximum[i];
      total += hn::GetLane(FastExp(df, hn::Set(df, relative)));
    }
    const auto inverse = hn::Set(df, 1.0f / total);
    for (int d = 0; d < head_dim; d += kVecLanes) {
      hn::StoreU(hn::Mul(hn::Add(hn::LoadU(df, even + d),
                                 hn::LoadU(df, even + head_dim + d)),
                         inverse),
                 df, to + d);
    }
  }
}

template <typename T>
HWY_INLINE void AttendTileOf(ConstRows q, const AttentionTile& tile,
                             const KvPool& pool, Rows out) {
  thread_local AttentionScratch scratch;
  const PanelFloats df;
  const KvPageFormat& format = pool.format;
  const int head_dim = format.head_dim;
  const int queries = tile.num_rows * tile.group;
  const QueryChunk& chunk = *tile.chunk;
  const auto scale =
      hn::Set(df, 1.0f / std::sqrt(static_cast<float>(head_dim)));
  const ptrdiff_t first_column =
      ptrdiff_t{tile.kv_head} * tile.group * head_dim;
  scratch.Resize(queries, head_dim);
  int length = 0;
  for (int i = 0; i < queries; ++i) {
    const int row = tile.first_row + i / tile.group;
    length = chunk.first_position + row + 1;
    scratch.length[i] = length;
    scratch.begin[i] = tile.window == 0 ? 0 : std::max(0, length - tile.window);
    const float* from = q.row(chunk.first_row + row) + first_column +
                        ptrdiff_t{i % tile.group} * head_dim;
    float* to = scratch.query.data() + ptrdiff_t{i} * head_dim;
    for (int d = 0; d < head_dim; d += kVecLanes) {
      hn::StoreU(hn::Mul(hn::LoadU(df, from + d), scale), df, to + d);
    }
  }
  const auto page_at = [&](int position) {
    const size_t block = static_cast<size_t>(position / kPageTokens);
    const uint32_t page = chunk.pages[block * tile.num_kv_heads +
                                      static_cast<size_t>(tile.kv_head)];
    return pool.base + page * format.page_bytes();
  };
  // Blocks before the first one that the first row sees are seen by nobody.
  const int first_block = scratch.begin[0] / kBlockTokens;
  for (int before = first_block * kBlockTokens; before < length;
       before += kBlockTokens) {
    const T* k[kBlockPages];
    const T* v[kBlockPages];
    const T* next_k[kBlockPages];
    for (int g = 0; g < kBlockPages && before + g * kPageTokens < length; ++g) {
      const int position = before + g * kPageTokens;
      const std::byte* page = page_at(position);
      k[g] = reinterpret_cast<const T*>(page + format.k_offset(tile.layer));
      v[g] = reinterpret_cast<const T*>(page + format.v_offset(tile.layer));
      next_k[g] = v[g];
      if (position + kBlockTokens < length) {
        next_k[g] = reinterpret_cast<const T*>(
            page_at(position + kBlockTokens) + format.k_offset(tile.layer));
      }
    }
    int i = 0;
    if constexpr (kMaxQueries >= 4) {
      for (; i + 4 <= queries; i += 4) {
        AttendBlock<T, 4>(i, head_dim, k, v, next_k, before, scratch);
      }
    }
    if constexpr (kMaxQueries >= 2) {
      for (; i + 2 <= queries; i += 2) {
        AttendBlock<T, 2>(i, head_dim, k, v, next_k, before, scratch);
      }
    }
    for (; i < queries; ++i) {
      AttendBlock<T, 1>(i, head_dim, k, v, next_k, before, scratch);
    }
  }
  WriteResults(tile, head_dim, scratch, out);
}

void AttendTile(ConstRows q, const AttentionTile& tile, const KvPool& pool,
                Rows out) {
  if (pool.format.type == KvType::kFloat32) {
    AttendTileOf<float>(q, tile, pool, out);
  } else {
    AttendTileOf<Bf16>(q, tile, pool, out);
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace moebius
HWY_AFTER_NAMESPACE();

#endif
