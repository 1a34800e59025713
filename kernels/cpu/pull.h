// Bulk copies of a switch, by threads.
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

// What can be wrong with segments: the errors of PullSegments.
absl::Status CheckSegments(absl::Span<const std::byte* const> sources,
                           int64_t source_bytes,
                           absl::Span<const CopySegment> segments,
                           int64_t dst_bytes);

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

}  // namespace moebius
