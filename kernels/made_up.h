// Made-up weights, the same values on every device.
#pragma once

#include <cstdint>

#include "common/base/split_mix.h"
#include "kernels/bf16.h"

namespace moebius {

// The sum of four uniform numbers is near enough to a normal one
// (Irwin-Hall, n = 4): standard deviation 65536 * sqrt(4 / 12).
constexpr float MadeUpFloat(uint64_t seed, uint64_t index) {
  const uint64_t z = SplitMixAt(seed, index);
  const int32_t sum = static_cast<int32_t>((z & 0xffff) + ((z >> 16) & 0xffff) +
                                           ((z >> 32) & 0xffff) + (z >> 48));
  return static_cast<float>(sum - 2 * 65535) * (0.02f / 37837.0f);
}

// Element `index` of a matrix: bell-shaped around 0, standard deviation 0.02.
constexpr Bf16 MadeUpElement(uint64_t seed, uint64_t index) {
  return ToBf16(MadeUpFloat(seed, index));
}

// Of a vector, the weights of a norm: the same around 1.
constexpr float MadeUpNorm(uint64_t seed, uint64_t index) {
  return ToFloat(ToBf16(1.0f + MadeUpFloat(seed, index)));
}

}  // namespace moebius
