// The simulation's chance: the same numbers from the same seed, everywhere.
#pragma once

#include <cstdint>

#include "common/base/split_mix.h"

namespace moebius::simulation {

// SplitMix64. Not the library's distributions, whose results differ between
// libraries. `steady`: no chance at all, and the middle of every range.
class Rng {
 public:
  explicit Rng(uint64_t seed, bool steady = false)
      : state_(seed), steady_(steady) {}

  uint64_t Next() { return SplitMix(state_ += kSplitMixGamma); }
  // From low to high, both included.
  int64_t Between(int64_t low, int64_t high) {
    if (steady_) return low + (high - low) / 2;
    return low +
           static_cast<int64_t>(Next() % static_cast<uint64_t>(high - low + 1));
  }
  int Int(int low, int high) { return static_cast<int>(Between(low, high)); }
  bool Chance(double probability) {
    return !steady_ && UnitInterval(Next()) < probability;
  }
  double Uniform(double low, double high) {
    return low + (high - low) * UnitInterval(Next());
  }
  // A generator of its own: what it gives away changes nothing here.
  Rng Fork() { return Rng(Next(), steady_); }

 private:
  uint64_t state_;
  bool steady_;
};

}  // namespace moebius::simulation
