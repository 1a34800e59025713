#include "deploy/bench/rollout_lengths.h"

#include <algorithm>
#include <cmath>
#include <numbers>

#include "common/base/check.h"
#include "common/base/split_mix.h"

namespace moebius {

std::vector<int> DrawLengths(const RolloutLengths& how, int count) {
  CHECK(1 <= how.least && how.least <= how.most && how.median >= 1);
  std::vector<int> lengths;
  for (int i = 0; i < count; ++i) {
    // Box and Muller, "A note on the generation of random normal deviates",
    // 1958.
    const uint64_t at = 2 * static_cast<uint64_t>(i);
    const double u = 1 - UnitInterval(SplitMixAt(how.seed, at));
    const double v = UnitInterval(SplitMixAt(how.seed, at + 1));
    const double normal =
        std::sqrt(-2 * std::log(u)) * std::cos(2 * std::numbers::pi * v);
    const double length = how.median * std::exp(how.sigma * normal);
    lengths.push_back(static_cast<int>(
        std::lround(std::clamp<double>(length, how.least, how.most))));
  }
  return lengths;
}

}  // namespace moebius
