// A journal looked at from outside, and mended as far as it is whole.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "coordinator/journal/disk.h"
#include "coordinator/journal/journal_frame.h"

namespace moebius {

// What one segment says, up to its damage if it has any.
struct SegmentReport {
  std::string name;  // of the file, without its directory
  uint64_t size_bytes = 0;
  SegmentHeader header;
  uint64_t frames = 0, records = 0;
  // Of the state that they add up to. A request's choices are several.
  uint64_t requests = 0, unfinished = 0, tokens = 0;
  // What is wrong, with its offset; OK: nothing is.
  absl::Status damage;
  // Up to where it is whole; 0: not even its header is.
  uint64_t whole_bytes = 0;
  std::optional<TornTail> torn;  // at the end of a sound one
};

// Newest first, which is the one that a coordinator reads. Changes nothing and
// takes no lock: of a journal in use it shows a moment.
// Errors: the disk's. Damage is none.
absl::StatusOr<std::vector<SegmentReport>> CheckJournal(Disk& disk);

struct Repair {
  std::string name;         // of the segment
  std::string aside;        // where its bytes are now
  uint64_t kept_bytes = 0;  // 0: the segment is gone from the journal
  SegmentReport before;
};

// Makes a damaged journal one that opens: the newest segment is cut off where
// it is no longer whole, one whose header is bad goes, and the next older one,
// if there is one, is looked at. What a damaged segment held stays beside it
// under another name, all of it; nothing is deleted. Everything after the
// damage is forgotten: requests go on from the last token before it, and come
// out the same. Empty: the newest segment was sound. Errors:
// kFailedPrecondition when a coordinator has the journal, or when another
// version wrote it; the disk's. After any error the journal is as it was, or
// repaired up to a segment.
absl::StatusOr<std::vector<Repair>> RepairJournal(Disk& disk);

}  // namespace moebius
