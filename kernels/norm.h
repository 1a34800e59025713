// Embedding lookup, RMSNorm and rotary position embedding. Each works on one
// row (or one head of a row) in one fixed order.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "kernels/formats.h"
#include "kernels/thread_pool.h"

namespace moebius {

// out row i = row ids[i] of the table W [vocabulary][hidden].
// kInvalidArgument for an id outside the table; then `out` is untouched.
// REQUIRES: out is [ids.size()][table.k].
absl::Status EmbedRows(PackedMatrix table, absl::Span<const int32_t> ids,
                       Rows out, ThreadPool* pool);

// out = x / sqrt(mean(x^2) + eps) * weight, for each row. out may be x.
// REQUIRES: weight.size() == x.cols; equal shapes.
void RmsNorm(ConstRows x, absl::Span<const float> weight, float eps, Rows out,
             ThreadPool* pool);

// cos and sin of position * theta^(-2i/head_dim) for i < head_dim/2, computed
// in double and stored as float.
class RotaryTable {
 public:
  // kInvalidArgument unless 1 <= max_positions <= 2^24, head_dim is a positive
  // multiple of 16 up to 1024 and theta is finite and at least 1.
  static absl::StatusOr<RotaryTable> Create(int max_positions, int head_dim,
                                            double theta);
  int max_positions() const { return max_positions_; }
  int head_dim() const { return head_dim_; }
  const float* cos(int position) const {
    return cos_.data() + static_cast<size_t>(position) * (head_dim_ / 2);
  }
  const float* sin(int position) const {
    return sin_.data() + static_cast<size_t>(position) * (head_dim_ / 2);
  }

 private:
  int max_positions_ = 0;
  int head_dim_ = 0;
  std::vector<float> cos_, sin_;  // [max_positions][head_dim / 2]
};

// For each row and each head (head_dim consecutive columns), in place:
// RMSNorm with `weight` [head_dim] (skipped when `weight` is empty), then the
// rotation of Qwen3 and Llama that pairs element i with i + head_dim/2
// (Su et al. 2021, arXiv 2104.09864; "half-split" order).
// REQUIRES: heads.cols is a multiple of table.head_dim(); positions.size() ==
//   heads.rows, each in [0, max_positions).
void HeadNormRotary(Rows heads, absl::Span<const float> weight, float eps,
                    absl::Span<const int32_t> positions,
                    const RotaryTable& table, ThreadPool* pool);

}  // namespace moebius
