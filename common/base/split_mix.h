// SplitMix64: numbers that look random, of a seed and a place. Source: Steele,
// Lea, Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014.
// The same everywhere and for ever: seeds of the simulation, made-up weights
// and plans of faults rest on it. Not for anything hostile.
#pragma once

#include <cstdint>

namespace moebius {

// What the generator's state grows by at each draw: 2^64 over the golden ratio.
inline constexpr uint64_t kSplitMixGamma = 0x9e3779b97f4a7c15u;

// The finaliser: a bijection in which each bit of `x` reaches all of the
// result. 0 stays 0.
constexpr uint64_t SplitMix(uint64_t x) {
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}

// What a generator that begins with `seed` draws after `index` others.
constexpr uint64_t SplitMixAt(uint64_t seed, uint64_t index) {
  return SplitMix(seed + (index + 1) * kSplitMixGamma);
}

// A number in [0, 1) of 64 random bits; the lowest 11 do not count.
constexpr double UnitInterval(uint64_t bits) {
  return static_cast<double>(bits >> 11) * 0x1p-53;
}

}  // namespace moebius
