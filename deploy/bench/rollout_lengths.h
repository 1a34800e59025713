// How many tokens the sequences of a rollout have. Pure.
#pragma once

#include <cstdint>
#include <vector>

namespace moebius {

// A log-normal distribution, cut at both ends: most sequences are short, and a
// few are many times as long, as answers of a model that reasons.
struct RolloutLengths {
  int median = 128;
  double sigma = 1.0;  // of the logarithm
  int least = 8;
  int most = 2048;
  uint64_t seed = 1;
};

// The same numbers everywhere. REQUIRES: 1 <= least <= most, median >= 1.
std::vector<int> DrawLengths(const RolloutLengths& how, int count);

}  // namespace moebius
