// Embedding lookup, RMSNorm and rotary position embedding. Each works on one
// row (or one head of a row) in one fixed order.
#pragma once

#include <cstdint>

#include "absl/types/span.h"
#include "kernels/attend.h"
#include "kernels/formats.h"
#include "kernels/thread_pool.h"

namespace moebius {

// out row i = row ids[i] of the table W [vocabulary][hidden].
// REQUIRES: ids inside the table; out is [ids.size()][table.k].
void EmbedRows(PackedMatrix table, absl::Span<const int32_t> ids, Rows out,
               ThreadPool* pool);

// out = x / sqrt(mean(x^2) + eps) * weight, for each row. out may be x.
// REQUIRES: weight.size() == x.cols; equal shapes.
void RmsNorm(ConstRows x, absl::Span<const float> weight, float eps, Rows out,
             ThreadPool* pool);

// out[i] = the sum of x[i][j] * w[j].
void RowDots(ConstRows x, const float* w, absl::Span<float> out,
             ThreadPool* pool);

// squares [rows][heads] = the sum of squares of each head of a row.
// REQUIRES: heads.cols == squares.cols * head_dim.
void HeadSquares(ConstRows heads, int head_dim, Rows squares, ThreadPool* pool);

// Heads of rows of `norm.size` elements in all, whose heads have these sums of
// squares, in place: x / sqrt(sum of them / size + eps) * weight.
// REQUIRES: norm.weight has heads.cols elements; squares.rows == heads.rows.
void WholeRowNorm(Rows heads, const Norm<Cpu>& norm, ConstRows squares,
                  ThreadPool* pool);

// For each row and each head (head_dim consecutive columns), in place:
// RMSNorm with `weight` [head_dim] (skipped when `weight` is empty), then the
// rotation of Qwen3 and Llama that pairs element i with i + head_dim/2
// (Su et al. 2021, arXiv 2104.09864; "half-split" order).
// REQUIRES: heads.cols is a multiple of table.head_dim; positions.size() ==
//   heads.rows, each in [0, max_positions).
void HeadNormRotary(Rows heads, absl::Span<const float> weight, float eps,
                    absl::Span<const int32_t> positions,
                    const Rotary<Cpu>& table, ThreadPool* pool);

}  // namespace moebius
