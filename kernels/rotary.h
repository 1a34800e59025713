// The angles of rotary position embedding, computed on the host.
#pragma once

#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"

namespace moebius {

// By how much the pairs of a head turn from one position to the next.
struct RotaryAngles {
  std::vector<double> frequencies;  // [head_dim / 2]
  double amplitude = 1;             // of cos and sin
};

// theta^(-2i/head_dim) for i < head_dim/2.
RotaryAngles PlainAngles(int head_dim, double theta);

// cos and sin of position * frequencies[i], times the amplitude, computed in
// double and stored as float: [max_positions][head_dim / 2] each.
class RotaryTable {
 public:
  // kInvalidArgument unless 1 <= max_positions <= 2^24, head_dim is a positive
  // multiple of 16 up to 1024, frequencies are finite and at most 1 and above
  // 0.
  static absl::StatusOr<RotaryTable> Create(int max_positions,
                                            const RotaryAngles& angles);
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
