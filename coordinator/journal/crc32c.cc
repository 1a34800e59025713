#include "coordinator/journal/crc32c.h"

#include <array>
#include <bit>
#include <cstring>

namespace moebius {
namespace {

constexpr uint32_t kPolynomial = 0x82F63B78;  // bits reversed
constexpr int kSlices = 8;
using Tables = std::array<std::array<uint32_t, 256>, kSlices>;

// Eight bytes at a time ("slicing by 8", Kounavis and Berry 2005): table k has
// what a byte contributes that k more bytes follow.
constexpr Tables MakeTables() {
  Tables tables{};
  for (uint32_t byte = 0; byte < 256; ++byte) {
    uint32_t crc = byte;
    for (int bit = 0; bit < 8; ++bit) {
      crc = crc >> 1 ^ ((crc & 1) != 0 ? kPolynomial : 0);
    }
    tables[0][byte] = crc;
  }
  for (int k = 1; k < kSlices; ++k) {
    for (uint32_t byte = 0; byte < 256; ++byte) {
      const uint32_t crc = tables[k - 1][byte];
      tables[k][byte] = crc >> 8 ^ tables[0][crc & 0xFF];
    }
  }
  return tables;
}
constexpr Tables kTables = MakeTables();

uint32_t Extend(uint32_t crc, absl::Span<const char> bytes) {
  static_assert(std::endian::native == std::endian::little);
  const char* at = bytes.data();
  size_t left = bytes.size();
  for (; left >= kSlices; at += kSlices, left -= kSlices) {
    uint64_t word;
    std::memcpy(&word, at, sizeof(word));
    word ^= crc;
    crc = 0;
    for (int k = 0; k < kSlices; ++k) {
      crc ^= kTables[kSlices - 1 - k][word >> (8 * k) & 0xFF];
    }
  }
  for (; left > 0; ++at, --left) {
    crc = crc >> 8 ^ kTables[0][(crc ^ static_cast<uint8_t>(*at)) & 0xFF];
  }
  return crc;
}

}  // namespace

uint32_t Crc32c(absl::Span<const char> first, absl::Span<const char> second) {
  return ~Extend(Extend(~uint32_t{0}, first), second);
}

}  // namespace moebius
