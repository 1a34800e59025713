#include "kernels/rotary.h"

#include <cmath>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"

namespace moebius {
namespace {

constexpr int kMaxPositions = 1 << 24;
constexpr int kMaxHeadDim = 1024;

}  // namespace

absl::StatusOr<RotaryTable> RotaryTable::Create(int max_positions, int head_dim,
                                                double theta) {
  if (max_positions < 1 || max_positions > kMaxPositions) {
    return absl::InvalidArgumentError(absl::StrCat(
        "max_positions must be 1 to ", kMaxPositions, ", not ", max_positions));
  }
  if (head_dim < 16 || head_dim > kMaxHeadDim || head_dim % 16 != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("head_dim must be a multiple of 16 up to ", kMaxHeadDim,
                     ", not ", head_dim));
  }
  if (!std::isfinite(theta) || theta < 1.0) {
    return absl::InvalidArgumentError(
        absl::StrCat("rope_theta must be at least 1, not ", theta));
  }
  RotaryTable table;
  table.max_positions_ = max_positions;
  table.head_dim_ = head_dim;
  const int half = head_dim / 2;
  table.cos_.reserve(static_cast<size_t>(max_positions) * half);
  table.sin_.reserve(static_cast<size_t>(max_positions) * half);
  std::vector<double> frequencies(half);
  for (int i = 0; i < half; ++i) {
    frequencies[i] = std::pow(theta, -2.0 * i / head_dim);
  }
  for (int position = 0; position < max_positions; ++position) {
    for (int i = 0; i < half; ++i) {
      const double angle = position * frequencies[i];
      table.cos_.push_back(static_cast<float>(std::cos(angle)));
      table.sin_.push_back(static_cast<float>(std::sin(angle)));
    }
  }
  return table;
}

}  // namespace moebius
