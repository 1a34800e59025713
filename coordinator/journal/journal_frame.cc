#include "coordinator/journal/journal_frame.h"

#include <bit>
#include <cstring>
#include <string_view>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/base/check.h"
#include "common/base/status_macros.h"
#include "coordinator/journal/crc32c.h"

namespace moebius {
namespace {

static_assert(std::endian::native == std::endian::little);

constexpr std::string_view kMagic = "MOEBJRNL";
constexpr size_t kAlignment = 8;
constexpr size_t kMinFrameBytes = kFrameHeaderBytes + kAlignment;

template <typename T>
T Load(absl::Span<const char> bytes, size_t offset) {
  T value;
  std::memcpy(&value, bytes.data() + offset, sizeof(value));
  return value;
}

template <typename T>
void Store(T value, size_t offset, std::string& bytes) {
  std::memcpy(bytes.data() + offset, &value, sizeof(value));
}

// Of a header or a frame, both of which have 4 bytes for it.
uint32_t Checksum(absl::Span<const char> bytes, size_t checksum_offset) {
  return Crc32c(bytes.first(checksum_offset),
                bytes.subspan(checksum_offset + sizeof(uint32_t)));
}

absl::Status Corrupt(uint64_t offset, absl::string_view what) {
  return absl::DataLossError(absl::StrCat("at offset ", offset, ": ", what));
}

absl::StatusOr<SegmentHeader> ReadHeader(absl::Span<const char> bytes) {
  if (bytes.size() < kSegmentHeaderBytes) {
    return Corrupt(0, absl::StrCat("a header of ", bytes.size(), " bytes"));
  }
  if (std::string_view(bytes.data(), kMagic.size()) != kMagic) {
    return Corrupt(0, "not a journal");
  }
  if (const auto version = Load<uint32_t>(bytes, 8);
      version != kJournalVersion) {
    return absl::FailedPreconditionError(
        absl::StrCat("at offset 8: a journal of version ", version,
                     "; this program reads ", kJournalVersion));
  }
  if (Checksum(bytes.first(kSegmentHeaderBytes), 12) !=
      Load<uint32_t>(bytes, 12)) {
    return Corrupt(0, "the header's checksum does not match");
  }
  return SegmentHeader{Load<uint64_t>(bytes, 16), Load<uint64_t>(bytes, 24),
                       Load<uint64_t>(bytes, 32), Load<uint64_t>(bytes, 40),
                       Load<uint64_t>(bytes, 48)};
}

uint64_t SequenceAt(absl::Span<const char> bytes, uint64_t offset,
                    uint64_t salt) {
  return Load<uint64_t>(bytes, offset + 8) ^ salt;
}

// The frame that begins at `offset`, if a good one does.
std::optional<Frame> FrameAt(absl::Span<const char> bytes, uint64_t offset,
                             uint64_t salt) {
  if (bytes.size() - offset < kMinFrameBytes) return std::nullopt;
  const size_t size = Load<uint32_t>(bytes, offset);
  if (size < kAlignment || size % kAlignment != 0 || size > kMaxFrameBytes ||
      size > bytes.size() - offset - kFrameHeaderBytes) {
    return std::nullopt;
  }
  const auto frame = bytes.subspan(offset, kFrameHeaderBytes + size);
  if (Checksum(frame, 4) != Load<uint32_t>(frame, 4)) return std::nullopt;
  return Frame{offset, SequenceAt(bytes, offset, salt),
               frame.subspan(kFrameHeaderBytes)};
}

// A good frame behind `offset`, where frame `expected` should begin and does
// not. Looks at checksums only where the sequence number is one that can be
// there, so the time is in proportion to the bytes.
std::optional<Frame> NextGoodFrame(absl::Span<const char> bytes,
                                   uint64_t offset, uint64_t expected,
                                   uint64_t salt) {
  const uint64_t most = (bytes.size() - offset) / kMinFrameBytes;
  for (uint64_t at = offset + kAlignment; at + kMinFrameBytes <= bytes.size();
       at += kAlignment) {
    if (SequenceAt(bytes, at, salt) - expected > most) continue;
    if (auto frame = FrameAt(bytes, at, salt)) return frame;
  }
  return std::nullopt;
}

}  // namespace

std::string EncodeHeader(const SegmentHeader& header) {
  std::string bytes(kSegmentHeaderBytes, '\0');
  std::memcpy(bytes.data(), kMagic.data(), kMagic.size());
  Store(kJournalVersion, 8, bytes);
  Store(header.segment, 16, bytes);
  Store(header.first_sequence, 24, bytes);
  Store(header.snapshot_end, 32, bytes);
  Store(header.checkpoint, 40, bytes);
  Store(header.salt, 48, bytes);
  Store(Checksum(bytes, 12), 12, bytes);
  return bytes;
}

void SealFrame(uint64_t sequence, uint64_t salt, std::string& frame) {
  CHECK(frame.size() >= kMinFrameBytes);
  const size_t size = frame.size() - kFrameHeaderBytes;
  CHECK(size % kAlignment == 0 && size <= kMaxFrameBytes);
  Store(static_cast<uint32_t>(size), 0, frame);
  Store(sequence ^ salt, 8, frame);
  Store(Checksum(frame, 4), 4, frame);
}

absl::StatusOr<SegmentContents> ReadSegment(absl::Span<const char> bytes) {
  ASSIGN_OR_RETURN(SegmentPart part, ReadWhatIsWhole(bytes));
  if (!part.damage.ok()) return part.damage;
  return std::move(part.contents);
}

absl::StatusOr<SegmentPart> ReadWhatIsWhole(absl::Span<const char> bytes) {
  SegmentPart part;
  SegmentContents& contents = part.contents;
  ASSIGN_OR_RETURN(contents.header, ReadHeader(bytes));
  const auto damaged = [&part](uint64_t offset, absl::Status damage) {
    part.damage = std::move(damage);
    part.damage_offset = offset;
    return std::move(part);
  };
  const auto& [segment, first_sequence, snapshot_end, digest, salt] =
      contents.header;
  const bool cut_snapshot = snapshot_end > bytes.size();
  uint64_t offset = kSegmentHeaderBytes;
  uint64_t expected = first_sequence;
  while (offset < bytes.size()) {
    const auto frame = FrameAt(bytes, offset, salt);
    if (!frame.has_value()) {
      if (cut_snapshot) break;
      if (offset < snapshot_end) {
        return damaged(offset, Corrupt(offset, "a bad snapshot"));
      }
      if (auto next = NextGoodFrame(bytes, offset, expected, salt)) {
        return damaged(offset,
                       Corrupt(offset, absl::StrCat("a bad frame before a good "
                                                    "one at offset ",
                                                    next->offset)));
      }
      contents.torn = TornTail{offset, bytes.size() - offset};
      break;
    }
    if (frame->sequence != expected) {
      return damaged(offset,
                     Corrupt(offset, absl::StrCat("frame ", frame->sequence,
                                                  " in place of ", expected)));
    }
    const uint64_t end = offset + kFrameHeaderBytes + frame->payload.size();
    if (end > snapshot_end && offset < snapshot_end) {
      return damaged(offset,
                     Corrupt(offset, "a frame across the end of the snapshot"));
    }
    contents.frames.push_back(*frame);
    offset = end;
    ++expected;
  }
  if (cut_snapshot) {
    return damaged(
        offset, Corrupt(bytes.size(), absl::StrCat("the file ends inside its "
                                                   "snapshot, which has ",
                                                   snapshot_end, " bytes")));
  }
  return part;
}

}  // namespace moebius
