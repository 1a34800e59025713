#include "worker/model/rotary_angles.h"

#include <algorithm>
#include <cmath>
#include <numbers>
#include <variant>

#include "common/base/check.h"

namespace moebius {
namespace {

void Scale(const RotarySpec&, std::monostate, RotaryAngles&) {}

void Scale(const RotarySpec&, const LinearScaling& scaling,
           RotaryAngles& angles) {
  for (double& frequency : angles.frequencies) frequency /= scaling.factor;
}

// Between which pairs it goes from what stays to what is divided: where the
// whole original context is beta_fast and beta_slow turns.
void Scale(const RotarySpec& rotary, const YarnScaling& scaling,
           RotaryAngles& angles) {
  const auto pair_of = [&](double turns) {
    return rotary.dims *
           std::log(scaling.original_positions /
                    (turns * 2 * std::numbers::pi)) /
           (2 * std::log(rotary.theta));
  };
  double low = pair_of(scaling.beta_fast), high = pair_of(scaling.beta_slow);
  if (scaling.truncate) {
    low = std::floor(low);
    high = std::ceil(high);
  }
  low = std::max(low, 0.0);
  high = std::min(high, rotary.dims - 1.0);
  if (low == high) high += 0.001;
  for (size_t i = 0; i < angles.frequencies.size(); ++i) {
    const double divided =
        std::clamp((static_cast<double>(i) - low) / (high - low), 0.0, 1.0);
    angles.frequencies[i] *= 1 - divided + divided / scaling.factor;
  }
  angles.amplitude = scaling.attention_factor;
}

void Scale(const RotarySpec&, const Llama3Scaling&, RotaryAngles&) {
  CHECK(!"supported");
}

}  // namespace

RotaryAngles AnglesOf(const RotarySpec& rotary) {
  RotaryAngles angles = PlainAngles(rotary.dims, rotary.theta);
  std::visit([&](const auto& scaling) { Scale(rotary, scaling, angles); },
             rotary.scaling);
  return angles;
}

}  // namespace moebius
