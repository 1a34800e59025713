#include "kernels/rotary.h"

#include <cmath>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"

namespace moebius {
namespace {

constexpr int kMaxPositions = 1 << 24;
constexpr int kMaxHeadDim = 1024;

}  // namespace

RotaryAngles PlainAngles(int head_dim, double theta) {
  RotaryAngles angles;
  for (int i = 0; i < head_dim / 2; ++i) {
    angles.frequencies.push_back(std::pow(theta, -2.0 * i / head_dim));
  }
  return angles;
}

absl::StatusOr<RotaryTable> RotaryTable::Create(int max_positions,
                                                const RotaryAngles& angles) {
  const int half = static_cast<int>(angles.frequencies.size());
  const int head_dim = 2 * half;
  if (max_positions < 1 || max_positions > kMaxPositions) {
    return absl::InvalidArgumentError(absl::StrCat(
        "max_positions must be 1 to ", kMaxPositions, ", not ", max_positions));
  }
  if (head_dim < 16 || head_dim > kMaxHeadDim || head_dim % 16 != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("head_dim must be a multiple of 16 up to ", kMaxHeadDim,
                     ", not ", head_dim));
  }
  for (const double frequency : angles.frequencies) {
    if (frequency > 0.0 && frequency <= 1.0) continue;
    return absl::InvalidArgumentError(absl::StrCat(
        "rotary frequencies must be above 0 and at most 1, not ", frequency));
  }
  RotaryTable table;
  table.max_positions_ = max_positions;
  table.head_dim_ = head_dim;
  table.cos_.reserve(static_cast<size_t>(max_positions) * half);
  table.sin_.reserve(static_cast<size_t>(max_positions) * half);
  for (int position = 0; position < max_positions; ++position) {
    for (int i = 0; i < half; ++i) {
      const double angle = position * angles.frequencies[i];
      table.cos_.push_back(
          static_cast<float>(angles.amplitude * std::cos(angle)));
      table.sin_.push_back(
          static_cast<float>(angles.amplitude * std::sin(angle)));
    }
  }
  return table;
}

}  // namespace moebius
