// The journal: what the coordinator may not forget, on a disk.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/config/config.h"
#include "coordinator/journal/disk.h"
#include "coordinator/journal/journal_record.h"
#include "coordinator/journal/journal_state.h"

namespace moebius {

// Stop reason, with FinishReason::kAbort, of what ended because another
// checkpoint had begun it.
inline constexpr char kOtherCheckpoint[] = "other_checkpoint";

struct JournalOptions {
  // Fingerprint of the checkpoint that tokens are drawn from from now on. What
  // was begun with another one does not go on.
  uint64_t checkpoint = 0;
  // Now: when requests end that do not go on.
  int64_t unix_ms = 0;
  // Drawn at random for each term: see journal_frame.h.
  uint64_t salt = 0;
  FsyncPolicy fsync = FsyncPolicy::kStep;
  // A segment that has grown by this much since its snapshot, and to twice the
  // size of it, is compacted.
  uint64_t rotate_bytes = uint64_t{64} << 20;
};

struct JournalFigures {
  uint64_t commits = 0;
  uint64_t bytes_written = 0;
  uint64_t syncs = 0;
  uint64_t segments = 0;
};

// Journal
//
// Append() takes a record into the state and into the next commit; Commit()
// writes what was appended. Only then may the world hear of it: a request's
// acceptance, a token, the COMMIT of a switch.
//
// A crash at any instant leaves a directory that opens to a prefix of what was
// appended, with all that was committed in it.
//
// Trouble: when a commit cannot be written, the journal is not healthy. The
// state keeps what was appended and goes on taking records, so that what was
// accepted can be served; nothing is written until TryHeal() has put the whole
// state into a new segment. The caller accepts nothing new meanwhile.
//
// There are never two histories to choose from:
//   - A segment is written to its end once. After a failed write or sync, of
//     which any part may be on disk or not, nothing more is added to it: what
//     it holds is a prefix of what was appended, with a torn tail at most. And
//     a sync that failed is not asked for again, as its yes would mean nothing.
//   - A new segment holds the state, that is everything appended so far, so it
//     continues each earlier one, whatever became of the latter's tail. It is
//     complete and synced before it gets its name, and older ones go only once
//     the name is synced too. Until then a crash opens to either, and nobody
//     was told of what only the new one holds.
//   - From the moment on at which a new segment may have its name, nothing is
//     added to the one before: the next opening may not look at it any more.
//     If the name is in doubt, the next attempt takes its place.
//   - Opening writes a new segment too. So no tail that was cut off is ever
//     continued, and what was read back from memory of the system alone is on
//     disk before anything is built on it.
//   - The newest segment is read or the journal does not open: to fall back to
//     an older one would be to forget commits.
//
// Bounds: records kMaxRecordBytes, records between two commits kMaxPendingBytes
// (beyond them Append commits), segments kMaxSegmentBytes.
// Threading: thread-compatible. No clock.
class Journal {
 public:
  static constexpr size_t kMaxPendingBytes = size_t{64} << 20;
  static constexpr uint64_t kMaxSegmentBytes = uint64_t{4} << 30;
  static constexpr size_t kMaxOldSegments = 64;

  // A torn tail: of no commit that succeeded, if commits are synced and the
  // disk keeps what it was given.
  struct CutOff {
    std::string file;
    uint64_t offset = 0;
    uint64_t size_bytes = 0;
    friend bool operator==(const CutOff&, const CutOff&) = default;
  };
  struct Opened {
    std::unique_ptr<Journal> journal;  // state() is what was recovered
    std::optional<CutOff> cut_off;
    // Another checkpoint wrote it: so many choices were unfinished, and have
    // ended with kAbort and the stop reason kOtherCheckpoint. Their tokens
    // would be continued by another model. Results of those that had ended are
    // kept.
    bool other_checkpoint = false;
    size_t num_given_up = 0;
  };

  // Takes the directory, reads the newest segment and begins the next one. If
  // that cannot be written the journal opens all the same, and is not healthy.
  // `disk` outlives the journal. Errors, changing nothing:
  //   kFailedPrecondition  another process has it; another version wrote it
  //   kDataLoss            corruption; names file and offset
  //   others               the disk's
  static absl::StatusOr<Opened> Open(const JournalOptions& options, Disk& disk);

  Journal(const Journal&) = delete;
  Journal& operator=(const Journal&) = delete;

  // Errors, changing nothing: JournalState::Apply's, and kInvalidArgument for a
  // record over kMaxRecordBytes. Tokens of a step may be as many as they like;
  // one prompt's log-probabilities have to fit (about 190 bytes a token with
  // kMaxLogprobs of them).
  absl::Status Append(journal::Record record);

  // OK: everything appended is on disk, as safe as the policy makes it. An
  // error: it may be or not; healthy() is false.
  absl::Status Commit();

  // Looks whether somebody has removed the segment. Then it is not healthy, as
  // after a commit that failed, and that is the error.
  absl::Status CheckPresence();

  bool healthy() const { return failure_.ok(); }
  // What is wrong, for people. Also when compaction fails, with which the
  // journal is healthy but grows. Empty: nothing is.
  std::string trouble() const;

  // Tries to write the state anew, if the journal is not healthy. OK: it is,
  // and everything appended is on disk.
  absl::Status TryHeal();

  const JournalState& state() const { return state_; }
  const JournalFigures& figures() const { return figures_; }
  // Of the segment being written.
  uint64_t size_bytes() const { return size_bytes_; }

 private:
  Journal(const JournalOptions& options, Disk& disk);

  // One that is complete and synced, under whatever name.
  struct Segment {
    uint64_t number = 0;
    uint64_t size_bytes = 0;
    uint64_t next_sequence = 0;
    std::unique_ptr<DiskFile> file;
  };

  absl::Status Recover(Opened& opened);
  absl::Status GiveUpUnfinished(Opened& opened);
  absl::Status Replay(const std::string& name, absl::Span<const char> bytes,
                      Opened& opened);
  absl::Status EncodeInPieces(const journal::Record& record);
  absl::Status WriteFrames();
  void ClearFrames();
  absl::Status Fail(absl::Status status);
  absl::Status Compact();
  absl::StatusOr<std::vector<std::string>> SnapshotFrames() const;
  absl::StatusOr<Segment> WriteSegment(const std::string& name,
                                       uint64_t number);
  absl::Status BeginSegment();
  void RemoveOldSegments();

  const JournalOptions options_;
  Disk& disk_;
  JournalState state_;
  JournalFigures figures_;
  absl::Status failure_;             // not OK: not healthy
  absl::Status compaction_failure_;  // of the last attempt

  // The last segment that was begun, or that opening found. `file_` is null
  // when not healthy.
  uint64_t number_ = 0;
  std::unique_ptr<DiskFile> file_;
  uint64_t size_bytes_ = 0;
  uint64_t compact_at_bytes_ = 0;
  uint64_t next_sequence_ = 1;
  std::vector<uint64_t> old_segments_;  // that may still be there

  // Frames of the next commit, each with room for its header; records go to the
  // last. The first is kept for its memory.
  std::vector<std::string> frames_;
  size_t pending_bytes_ = 0;
  // Scratch: a record's pieces, and where each ends.
  std::string pieces_;
  std::vector<size_t> piece_ends_;
};

}  // namespace moebius
