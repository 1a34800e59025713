// Floats as integers of the same order.
#pragma once

#include <cstdint>

namespace moebius {

// Of a higher value the key is higher, and above 0. NaN counts as -infinity,
// and -0 as 0.
__device__ inline uint32_t KeyOf(float value) {
  const float ordered = isnan(value) ? -INFINITY : value + 0.0f;
  const uint32_t bits = __float_as_uint(ordered);
  return bits >> 31 != 0 ? ~bits : bits | 0x80000000u;
}
__device__ inline float ValueOf(uint32_t key) {
  return __uint_as_float(key >> 31 != 0 ? key & 0x7fffffffu : ~key);
}

}  // namespace moebius
