// The exchange region: what a rank shows the others in a step. Pure.
//
// A step's collectives alternate between two buffers, so each needs one barrier
// only: a rank that writes buffer 0 again has passed the barrier of a buffer 1,
// which nobody reached before it had read buffer 0. Every layer uses buffer 0
// first and buffer 1 last, in every layout, so this holds across steps and
// switches. Between EP and TP both parts of buffer 0 are shown, one after the
// other, each before a barrier of its own. The logits have two buffers of their
// own, for the same reason.
//
//   buffer 0  [rows][hidden] partial sums of the attention's output (int64, or
//             what the device's are): in EP private; and, but in TP, float32
//             [rows][hidden] normalised rows, int32 [rows][top_k] experts,
//             float32 [rows][top_k] weights
//   buffer 1  [rows][hidden] partial sums of the experts, likewise: the rows of
//             attention's group 0, then of group 1, ...
//   logits    float32 [logit_rows][columns of this rank, whole panels], twice
//
//   squares   float32 [rows][query heads + KV heads], where heads are normed by
//             those of all; shown but in EP. A layer's are read before the
//             barrier of its attention's sums.
//   shared    [rows][hidden] partial sums of the expert that all rows go to,
//             where there is one; shown but in EP. They are written behind a
//             layer's barrier of attention's sums, and read behind that of the
//             experts', which is before the next layer's.
//
// There is room for what any layout needs.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

#include "common/base/ids.h"
#include "common/layout/layout.h"
#include "worker/model/model_shape.h"

namespace moebius {

struct ExchangeLayout {
  int max_rows = 0;    // of a step, over the group
  int logit_rows = 0;  // at once; a multiple of num_ranks
  // Most columns that a rank has in a layout which divides them, whole panels.
  int64_t logit_cols = 0;

  int64_t sums[2] = {0, 0};  // offsets of buffers 0 and 1
  int64_t rows = 0;          // offsets of the rest of buffer 0
  int64_t experts = 0;
  int64_t weights = 0;
  int64_t squares = 0;
  int64_t shared = 0;
  int64_t logits[2] = {0, 0};
  int64_t size_bytes = 0;
};

// What a device makes of it.
struct ExchangeElements {
  int partial_bytes = 8;  // an element of partial sums
  // Logits of one chunk of rows; at least kMaxRanks rows in any case.
  int64_t logit_chunk_bytes = int64_t{8} << 20;
};

// REQUIRES: max_rows >= 1.
ExchangeLayout PlanExchange(const ModelShape& shape, int max_rows,
                            const ExchangeElements& elements = {});

// Query heads and KV heads of the model.
inline int NumHeads(const ModelShape& shape) {
  return shape.attention.num_q_heads + shape.attention.num_kv_heads;
}
// Those that a rank computes, among the columns of `squares`.
inline std::array<IndexRange, 2> HeadColumns(const ModelShape& shape,
                                             Layout attention, Rank rank) {
  const HeadRange heads = HeadsOf(shape.attention, attention, rank);
  const int q_heads = shape.attention.num_q_heads;
  return {IndexRange{heads.q_begin, heads.q_end},
          IndexRange{q_heads + heads.kv_begin, q_heads + heads.kv_end}};
}

// Columns of the vocabulary that a rank computes of its group's rows, whole
// panels: in EP all.
IndexRange LogitShare(const ModelShape& shape, Layout attention, Rank rank);

}  // namespace moebius
