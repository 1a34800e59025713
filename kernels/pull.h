// Bulk copies of the switch, and checksums of what was copied.
#pragma once

#include <cstddef>
#include <cstdint>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "common/layout/blocks.h"
#include "kernels/thread_pool.h"

namespace moebius {

// From this many bytes in all, a copy uses streaming stores: it would evict
// what the caches hold. Below, what was copied is at hand for the reader that
// comes next; a slot of 1.5 MB is pulled 1.5 times as fast that way (EPYC,
// copy_bench).
inline constexpr int64_t kStreamTotalBytes = int64_t{8} << 20;

// Copies every segment: dst + dst_offset <- sources[src_rank] + src_offset.
//
// REQUIRES: destinations are disjoint and overlap no source.
// Errors: kInvalidArgument, before copying anything, when a segment's rank has
//   no source, or a negative number, or reaches beyond `source_bytes` or
//   `dst_bytes`.
// Cost: no allocation. Returns when every byte is visible to this process.
absl::Status PullSegments(absl::Span<const std::byte* const> sources,
                          int64_t source_bytes,
                          absl::Span<const CopySegment> segments,
                          std::byte* dst, int64_t dst_bytes, ThreadPool* pool);

// A copy of one block, with streaming stores when it is large.
void CopyBlock(std::byte* dst, const std::byte* src, size_t size_bytes);

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
uint64_t Checksum(absl::Span<const std::byte> bytes, ThreadPool* pool);

}  // namespace moebius
