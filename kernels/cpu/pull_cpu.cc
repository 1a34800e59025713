#include <algorithm>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "common/base/check.h"
#include "kernels/checksum.h"
#include "kernels/cpu/pull.h"
#include "kernels/cpu/targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/pull_cpu.cc"
#include "hwy/foreach_target.h"
//
#include "hwy/cache_control.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace moebius {
namespace HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

// Streaming stores need not read the destination first and leave the caches
// alone. The caller fences.
void StreamBytes(std::byte* to, const std::byte* from, size_t size) {
  const hn::CappedTag<uint8_t, 64> d;
  constexpr size_t kLine = 64;
  const size_t head =
      std::min(size, (kLine - reinterpret_cast<uintptr_t>(to) % kLine) % kLine);
  std::memcpy(to, from, head);
  auto* dst = reinterpret_cast<uint8_t*>(to + head);
  const auto* src = reinterpret_cast<const uint8_t*>(from + head);
  size -= head;
  const size_t lanes = hn::Lanes(d);
  size_t i = 0;
  for (; i + 4 * lanes <= size; i += 4 * lanes) {
    const auto a = hn::LoadU(d, src + i);
    const auto b = hn::LoadU(d, src + i + lanes);
    const auto c = hn::LoadU(d, src + i + 2 * lanes);
    const auto e = hn::LoadU(d, src + i + 3 * lanes);
    hn::Stream(a, d, dst + i);
    hn::Stream(b, d, dst + i + lanes);
    hn::Stream(c, d, dst + i + 2 * lanes);
    hn::Stream(e, d, dst + i + 3 * lanes);
  }
  std::memcpy(dst + i, src + i, size - i);
}

inline constexpr uint64_t kMultiplier = 0x9E3779B97F4A7C15u;
inline constexpr size_t kChecksumLanes = 32;

HWY_INLINE uint64_t ChecksumStep(uint64_t h, uint64_t word) {
  const uint64_t g = (h ^ word) * kMultiplier;
  return g ^ (g >> 32);
}

// Value of a block whose size is a multiple of 256.
uint64_t BlockChecksum(const std::byte* bytes, size_t size) {
  HWY_ALIGN uint64_t lanes[kChecksumLanes];
  for (size_t j = 0; j < kChecksumLanes; ++j) lanes[j] = j;
  for (size_t i = 0; i < size; i += sizeof(lanes)) {
    HWY_ALIGN uint64_t words[kChecksumLanes];
    std::memcpy(words, bytes + i, sizeof(words));
    for (size_t j = 0; j < kChecksumLanes; ++j) {
      lanes[j] = ChecksumStep(lanes[j], words[j]);
    }
  }
  uint64_t value = 0;
  for (size_t j = 0; j < kChecksumLanes; ++j) {
    value = ChecksumStep(value, lanes[j]);
  }
  return value;
}

}  // namespace HWY_NAMESPACE
}  // namespace moebius
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace moebius {
namespace {

HWY_EXPORT(StreamBytes);
HWY_EXPORT(BlockChecksum);

// Shorter pieces are not worth the partial lines at their ends.
constexpr size_t kStreamPieceBytes = size_t{1} << 10;

void CopyPiece(std::byte* dst, const std::byte* src, size_t size, bool stream) {
  if (stream && size >= kStreamPieceBytes) {
    HWY_DYNAMIC_DISPATCH(StreamBytes)(dst, src, size);
  } else {
    std::memcpy(dst, src, size);
  }
}

uint64_t Fold(uint64_t h, uint64_t word) {
  const uint64_t g = (h ^ word) * 0x9E3779B97F4A7C15u;
  return g ^ (g >> 32);
}

uint64_t ChecksumOfBlock(absl::Span<const std::byte> block) {
  constexpr size_t kStripe = 256;
  if (block.size() % kStripe == 0) {
    return HWY_DYNAMIC_DISPATCH(BlockChecksum)(block.data(), block.size());
  }
  thread_local std::byte padded[kChecksumBlockBytes];
  const size_t size = (block.size() + kStripe - 1) / kStripe * kStripe;
  std::memcpy(padded, block.data(), block.size());
  std::memset(padded + block.size(), 0, size - block.size());
  return HWY_DYNAMIC_DISPATCH(BlockChecksum)(padded, size);
}

}  // namespace

absl::Status CheckSegments(absl::Span<const std::byte* const> sources,
                           int64_t source_bytes,
                           absl::Span<const CopySegment> segments,
                           int64_t dst_bytes) {
  for (const CopySegment& segment : segments) {
    const int64_t size = segment.size_bytes;
    if (segment.src_rank < 0 ||
        static_cast<size_t>(segment.src_rank) >= sources.size() ||
        sources[segment.src_rank] == nullptr || size < 0 ||
        segment.src_offset < 0 || segment.src_offset > source_bytes - size ||
        segment.dst_offset < 0 || segment.dst_offset > dst_bytes - size) {
      return absl::InvalidArgumentError(absl::StrCat(
          "segment of rank ", segment.src_rank, " from ", segment.src_offset,
          " to ", segment.dst_offset, ", ", size,
          " bytes, is outside the regions of ", source_bytes, " and ",
          dst_bytes, " bytes of ", sources.size(), " ranks"));
    }
  }
  return absl::OkStatus();
}

absl::Status PullSegments(absl::Span<const std::byte* const> sources,
                          int64_t source_bytes,
                          absl::Span<const CopySegment> segments,
                          std::byte* dst, int64_t dst_bytes, ThreadPool* pool) {
  const absl::Status checked =
      CheckSegments(sources, source_bytes, segments, dst_bytes);
  if (!checked.ok()) return checked;
  int64_t total = 0;
  for (const CopySegment& segment : segments) total += segment.size_bytes;
  const bool stream = total >= kStreamTotalBytes;
  // Tasks take equal shares of the bytes, whatever the segments' sizes.
  constexpr int64_t kLine = 64;
  const int tasks = NumThreads(pool) == 1 ? 1 : 4 * NumThreads(pool);
  const int64_t share = (total / tasks + kLine) / kLine * kLine;
  ParallelFor(pool, tasks, [&](int task) {
    const int64_t begin = task * share, end = begin + share;
    int64_t at = 0;  // bytes in the segments before
    for (const CopySegment& segment : segments) {
      if (at >= end) break;
      const int64_t first = std::max<int64_t>(begin - at, 0);
      const int64_t last = std::min(end - at, segment.size_bytes);
      if (first < last) {
        CopyPiece(dst + segment.dst_offset + first,
                  sources[segment.src_rank] + segment.src_offset + first,
                  static_cast<size_t>(last - first), stream);
      }
      at += segment.size_bytes;
    }
    hwy::FlushStream();
  });
  return absl::OkStatus();
}

void CopyBlock(std::byte* dst, const std::byte* src, size_t size_bytes) {
  CopyPiece(dst, src, size_bytes,
            static_cast<int64_t>(size_bytes) >= kStreamTotalBytes);
  hwy::FlushStream();
}

uint64_t Checksum(const Cpu& device, absl::Span<const std::byte> bytes) {
  constexpr size_t kBatch = 256;  // blocks
  uint64_t value = bytes.size();
  uint64_t blocks[kBatch];
  while (!bytes.empty()) {
    const auto batch =
        bytes.first(std::min(bytes.size(), kBatch * kChecksumBlockBytes));
    bytes.remove_prefix(batch.size());
    const int count = static_cast<int>(
        (batch.size() + kChecksumBlockBytes - 1) / kChecksumBlockBytes);
    ParallelFor(device.pool, count, [&](int i) {
      blocks[i] = ChecksumOfBlock(
          batch.subspan(i * kChecksumBlockBytes, kChecksumBlockBytes));
    });
    for (int i = 0; i < count; ++i) value = Fold(value, blocks[i]);
  }
  return value;
}

}  // namespace moebius
#endif  // HWY_ONCE
