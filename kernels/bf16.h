// BF16: the upper half of an IEEE float32. Storage only; arithmetic is float32.
#pragma once

#include <bit>
#include <cstdint>

namespace moebius {

struct Bf16 {
  uint16_t bits = 0;
  friend constexpr bool operator==(Bf16, Bf16) = default;
};
static_assert(sizeof(Bf16) == 2);

constexpr float ToFloat(Bf16 value) {
  return std::bit_cast<float>(uint32_t{value.bits} << 16);
}

// Rounds to nearest, ties to even. A NaN stays a NaN.
constexpr Bf16 ToBf16(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  if ((bits & 0x7fffffffu) > 0x7f800000u) {
    return Bf16{static_cast<uint16_t>((bits >> 16) | 0x40u)};
  }
  return Bf16{
      static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16)};
}

}  // namespace moebius
