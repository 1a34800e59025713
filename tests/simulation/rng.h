// The simulation's chance: the same numbers from the same seed, everywhere.
#pragma once

#include <cstdint>

namespace moebius::simulation {

// SplitMix64 (Steele, Lea, Flood 2014). Not the library's distributions, whose
// results differ between libraries.
class Rng {
 public:
  explicit Rng(uint64_t seed) : state_(seed) {}

  uint64_t Next() {
    uint64_t z = (state_ += 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
  }
  // From low to high, both included.
  int64_t Between(int64_t low, int64_t high) {
    return low +
           static_cast<int64_t>(Next() % static_cast<uint64_t>(high - low + 1));
  }
  int Int(int low, int high) { return static_cast<int>(Between(low, high)); }
  bool Chance(double probability) {
    return static_cast<double>(Next() >> 11) * 0x1p-53 < probability;
  }
  double Uniform(double low, double high) {
    return low + (high - low) * (static_cast<double>(Next() >> 11) * 0x1p-53);
  }
  // A generator of its own: what it gives away changes nothing here.
  Rng Fork() { return Rng(Next()); }

 private:
  uint64_t state_;
};

}  // namespace moebius::simulation
