// A checksum that says whether memory holds what it should.
#pragma once

#include <cstddef>
#include <cstdint>

#include "absl/types/span.h"
#include "kernels/device.h"

namespace moebius {

// 64-bit checksum of a byte range. Not cryptographic. Two ranges of one size
// that differ in a single aligned 64-bit word never have the same one; others
// do with the odds of a hash.
//
// The range is cut into blocks of kChecksumBlockBytes, the last one padded with
// zeros to a multiple of 256 bytes. With words w[i] of 64 bits, little-endian,
// arithmetic modulo 2^64, P = 0x9E3779B97F4A7C15 (2^64 over the golden ratio,
// odd), step(h, w) = let g = (h ^ w) * P in g ^ (g >> 32):
//   lane j of a block     h_j = step(... step(step(j, w[j]), w[32 + j]) ...)
//   value of a block      step(... step(step(0, h_0), h_1) ..., h_31)
//   checksum              step(... step(step(size_bytes, block 0), block 1)
//   ...)
// so it depends on the bytes and their places alone, not on threads or
// instruction set.
inline constexpr size_t kChecksumBlockBytes = size_t{64} << 10;
uint64_t Checksum(const Cpu& device, absl::Span<const std::byte> bytes);

}  // namespace moebius
