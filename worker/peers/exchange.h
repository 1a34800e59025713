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
// There is room for what any layout needs.
#pragma once

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

// Columns of the vocabulary that a rank computes of its group's rows, whole
// panels: in EP all.
IndexRange LogitShare(const ModelShape& shape, Layout attention, Rank rank);

}  // namespace moebius
