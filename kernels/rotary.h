// The angles of rotary position embedding, computed on the host.
#pragma once

#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"

namespace moebius {

// cos and sin of position * theta^(-2i/head_dim) for i < head_dim/2, computed
// in double and stored as float: [max_positions][head_dim / 2] each.
class RotaryTable {
 public:
  // kInvalidArgument unless 1 <= max_positions <= 2^24, head_dim is a positive
  // multiple of 16 up to 1024 and theta is finite and at least 1.
  static absl::StatusOr<RotaryTable> Create(int max_positions, int head_dim,
                                            double theta);
  int max_positions() const { return max_positions_; }
  int head_dim() const { return head_dim_; }
  absl::Span<const float> cos() const { return cos_; }
  absl::Span<const float> sin() const { return sin_; }

 private:
  int max_positions_ = 0;
  int head_dim_ = 0;
  std::vector<float> cos_, sin_;
};

}  // namespace moebius
