// The journal's files: their format, and a reader that tells a write that was
// cut short from bytes that have gone bad. Pure: bytes in, frames out.
//
// A journal is a directory of segments, of which the one with the highest
// number is read. A segment begins with a header, then with a snapshot of
// everything before it, and goes on with frames, one for each commit. All
// numbers are little-endian; everything begins at a multiple of 8 bytes.
//
//   header    [0, 8)    "MOEBJRNL"
//             [8, 12)   kJournalVersion
//             [12, 16)  CRC-32C of the header's other bytes
//             [16, 24)  number of the segment, from 1
//             [24, 32)  sequence number of its first frame
//             [32, 40)  where its snapshot ends: an offset in the file
//             [40, 48)  fingerprint of the checkpoint
//             [48, 56)  salt
//   frame     [0, 4)    bytes of the payload: a multiple of 8, at least 8
//             [4, 8)    CRC-32C of [0, 4) and of all that follows
//             [8, 16)   sequence number, xor the salt
//             [16, ...) payload: one or more records (journal_codec.h)
//
// Sequence numbers go up by one from frame to frame and on into the next
// segment.
//
// A segment gets its name once header and snapshot are on disk, and a frame is
// only written behind one that is (where commits are synced at all). So bad
// bytes in header or snapshot, and a bad frame before a good one, are
// *corruption*: something that was on disk has changed, and what it said is
// lost. Bad bytes at the end, with no good frame behind them, are a *torn
// tail*: a write that was cut short, whose commit nobody was told of. (A last
// frame that went bad later looks the same.)
//
// Whether a good frame follows is found by looking for one at every multiple
// of 8 bytes, since a bad frame's length may be bad too. The bytes looked at
// may be a torn record's, and with it text that a client chose to look like a
// frame. Hence the salt, which no client knows: without it nobody can write a
// sequence number that comes next.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "coordinator/journal/journal_record.h"

namespace moebius {

inline constexpr uint32_t kJournalVersion = 1;
inline constexpr size_t kSegmentHeaderBytes = 56;
inline constexpr size_t kFrameHeaderBytes = 16;
// A frame takes any one record.
inline constexpr size_t kMaxFrameBytes = journal::kMaxRecordBytes;

struct SegmentHeader {
  uint64_t segment = 0;
  uint64_t first_sequence = 0;
  uint64_t snapshot_end = kSegmentHeaderBytes;
  uint64_t checkpoint = 0;
  uint64_t salt = 0;
  friend bool operator==(const SegmentHeader&, const SegmentHeader&) = default;
};

std::string EncodeHeader(const SegmentHeader& header);

// Makes `frame` one, with the payload behind its first kFrameHeaderBytes,
// which were left free for this.
// REQUIRES: a payload of 8 to kMaxFrameBytes, a multiple of 8.
void SealFrame(uint64_t sequence, uint64_t salt, std::string& frame);

struct Frame {
  uint64_t offset = 0;  // in the file
  uint64_t sequence = 0;
  absl::Span<const char> payload;
};

// Bytes from `offset` to the end of the file.
struct TornTail {
  uint64_t offset = 0;
  uint64_t size_bytes = 0;
  friend bool operator==(const TornTail&, const TornTail&) = default;
};

struct SegmentContents {
  SegmentHeader header;
  std::vector<Frame> frames;  // their payloads are inside the bytes read
  std::optional<TornTail> torn;
};

// Reads a whole segment. Errors, which name the offset:
//   kDataLoss            corruption: a bad header or snapshot, a bad frame
//                        before a good one, a gap in the sequence numbers
//   kFailedPrecondition  another version wrote it
absl::StatusOr<SegmentContents> ReadSegment(absl::Span<const char> bytes);

// A segment as far as it is whole.
struct SegmentPart {
  SegmentContents contents;  // up to the damage
  absl::Status damage;       // as ReadSegment() says it; OK: there is none
  uint64_t damage_offset = 0;
};
// Errors: those of the header, without which nothing can be read.
absl::StatusOr<SegmentPart> ReadWhatIsWhole(absl::Span<const char> bytes);

}  // namespace moebius
