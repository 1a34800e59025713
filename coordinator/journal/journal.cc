#include "coordinator/journal/journal.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/base/status_macros.h"
#include "coordinator/journal/journal_codec.h"
#include "coordinator/journal/journal_frame.h"
#include "coordinator/journal/journal_names.h"

namespace moebius {
namespace {

// Memory that a frame's buffer keeps from one commit to the next.
constexpr size_t kMaxKeptBytes = size_t{1} << 20;
// With which a segment can still grow to twice its snapshot.
constexpr uint64_t kMaxSnapshotBytes = Journal::kMaxSegmentBytes / 4;

// Adds a record to the last of `frames`, or to a new one if that is full or
// every record is to have its own.
void AddPiece(absl::string_view piece, bool alone,
              std::vector<std::string>& frames) {
  const bool full = !frames.empty() && frames.back().size() + piece.size() >
                                           kFrameHeaderBytes + kMaxFrameBytes;
  const bool begun =
      !frames.empty() && frames.back().size() > kFrameHeaderBytes;
  if (frames.empty() || full || (alone && begun)) {
    frames.emplace_back(kFrameHeaderBytes, '\0');
  }
  frames.back().append(piece.data(), piece.size());
}

}  // namespace

Journal::Journal(const JournalOptions& options, Disk& disk)
    : options_(options), disk_(disk) {}

// ---- opening ---------------------------------------------------------------

absl::StatusOr<Journal::Opened> Journal::Open(const JournalOptions& options,
                                              Disk& disk) {
  Opened opened;
  opened.journal = std::unique_ptr<Journal>(new Journal(options, disk));
  RETURN_IF_ERROR(opened.journal->Recover(opened));
  if (absl::Status begun = opened.journal->BeginSegment(); !begun.ok()) {
    opened.journal->Fail(std::move(begun)).IgnoreError();
  }
  return opened;
}

absl::Status Journal::Recover(Opened& opened) {
  RETURN_IF_ERROR(disk_.Lock());
  ASSIGN_OR_RETURN(const std::vector<std::string> names, disk_.List());
  for (const std::string& name : names) {
    if (const auto segment = SegmentOf(name); segment.has_value()) {
      old_segments_.push_back(*segment);
    }
  }
  if (!old_segments_.empty()) {
    std::sort(old_segments_.begin(), old_segments_.end());
    number_ = old_segments_.back();
    old_segments_.pop_back();
    const std::string name = SegmentName(number_);
    ASSIGN_OR_RETURN(const std::string bytes,
                     disk_.Read(name, kMaxSegmentBytes));
    if (absl::Status status = Replay(name, bytes, opened); !status.ok()) {
      return absl::Status(status.code(), absl::StrCat(disk_.Describe(name),
                                                      ": ", status.message()));
    }
  }
  for (const std::string& name : names) {
    // Of an attempt that was cut short. If it stays it only takes room.
    if (IsTemporarySegment(name)) disk_.Remove(name).IgnoreError();
  }
  return opened.other_checkpoint ? GiveUpUnfinished(opened) : absl::OkStatus();
}

// Before a segment says that all of this is the present checkpoint's.
absl::Status Journal::GiveUpUnfinished(Opened& opened) {
  std::vector<RequestId> unfinished;
  for (const auto& [first, request] : state_.requests()) {
    for (size_t i = 0; i < request.choices.size(); ++i) {
      if (request.choices[i].finish.has_value()) continue;
      unfinished.push_back(RequestId{first.value + i});
    }
  }
  for (RequestId id : unfinished) {
    RETURN_IF_ERROR(state_.Apply(journal::Ended{
        id, FinishReason::kAbort, kOtherCheckpoint, options_.unix_ms}));
  }
  opened.num_given_up = unfinished.size();
  return absl::OkStatus();
}

absl::Status Journal::Replay(const std::string& name,
                             absl::Span<const char> bytes, Opened& opened) {
  ASSIGN_OR_RETURN(const SegmentContents contents, ReadSegment(bytes));
  if (contents.header.segment != number_) {
    return absl::DataLossError(absl::StrCat("at offset 16: this is segment ",
                                            contents.header.segment));
  }
  opened.other_checkpoint = contents.header.checkpoint != options_.checkpoint;
  next_sequence_ = contents.header.first_sequence + contents.frames.size();
  for (const Frame& frame : contents.frames) {
    auto records = journal::DecodeRecords(frame.payload);
    absl::Status status = records.status();
    if (records.ok()) {
      for (journal::Record& record : *records) {
        status = state_.Apply(std::move(record));
        if (!status.ok()) break;
      }
    }
    if (!status.ok()) {
      return absl::DataLossError(
          absl::StrCat("at offset ", frame.offset, ": ", status.message()));
    }
  }
  if (contents.torn.has_value()) {
    opened.cut_off = CutOff{disk_.Describe(name), contents.torn->offset,
                            contents.torn->size_bytes};
  }
  return absl::OkStatus();
}

// ---- appending -------------------------------------------------------------

absl::Status Journal::Append(journal::Record record) {
  pieces_.clear();
  piece_ends_.clear();
  RETURN_IF_ERROR(EncodeInPieces(record));
  if (pending_bytes_ + pieces_.size() > kMaxPendingBytes) {
    // Before the record is in the state: a compaction would write it too. An
    // error is the next Commit's to report.
    Commit().IgnoreError();
  }
  RETURN_IF_ERROR(state_.Apply(std::move(record)));
  if (healthy()) {
    size_t begin = 0;
    for (size_t end : piece_ends_) {
      AddPiece(absl::string_view(pieces_).substr(begin, end - begin),
               options_.fsync == FsyncPolicy::kAlways, frames_);
      begin = end;
    }
    pending_bytes_ += pieces_.size();
  }
  if (pieces_.capacity() > kMaxKeptBytes) std::string().swap(pieces_);
  return absl::OkStatus();
}

// A step's tokens that are too many for one record are several.
absl::Status Journal::EncodeInPieces(const journal::Record& record) {
  const absl::Status status = Encode(record, pieces_);
  if (status.ok()) {
    piece_ends_.push_back(pieces_.size());
    return status;
  }
  const auto* step = std::get_if<journal::StepTokens>(&record);
  if (step == nullptr || step->tokens.size() < 2) return status;
  const auto begin = step->tokens.begin();
  const auto middle = begin + step->tokens.size() / 2;
  RETURN_IF_ERROR(EncodeInPieces(journal::StepTokens{
      step->step, std::vector<journal::AddedToken>(begin, middle)}));
  return EncodeInPieces(journal::StepTokens{
      step->step,
      std::vector<journal::AddedToken>(middle, step->tokens.end())});
}

absl::Status Journal::Commit() {
  if (!healthy()) return failure_;
  if (pending_bytes_ == 0) return absl::OkStatus();
  if (absl::Status status = WriteFrames(); !status.ok()) {
    return Fail(std::move(status));
  }
  ++figures_.commits;
  return size_bytes_ < compact_at_bytes_ ? absl::OkStatus() : Compact();
}

absl::Status Journal::WriteFrames() {
  for (std::string& frame : frames_) {
    SealFrame(next_sequence_, options_.salt, frame);
    RETURN_IF_ERROR(file_->Append(frame));
    // Before the next frame is written, see journal_frame.h.
    if (options_.fsync != FsyncPolicy::kNone) {
      RETURN_IF_ERROR(file_->Sync());
      ++figures_.syncs;
    }
    ++next_sequence_;
    size_bytes_ += frame.size();
    figures_.bytes_written += frame.size();
  }
  ClearFrames();
  return absl::OkStatus();
}

absl::Status Journal::Fail(absl::Status status) {
  file_.reset();
  ClearFrames();
  failure_ = std::move(status);
  return failure_;
}

void Journal::ClearFrames() {
  pending_bytes_ = 0;
  frames_.resize(std::min<size_t>(frames_.size(), 1));
  if (frames_.empty()) return;
  frames_[0].resize(kFrameHeaderBytes);
  if (frames_[0].capacity() > kMaxKeptBytes) frames_.clear();
}

std::string Journal::trouble() const {
  return std::string((healthy() ? compaction_failure_ : failure_).message());
}

absl::Status Journal::CheckPresence() {
  if (!healthy() || file_->Present()) return absl::OkStatus();
  return Fail(absl::NotFoundError(absl::StrCat(
      disk_.Describe(SegmentName(number_)), " was removed by somebody")));
}

absl::Status Journal::TryHeal() {
  if (healthy()) return absl::OkStatus();
  failure_ = BeginSegment();
  return failure_;
}

// ---- segments --------------------------------------------------------------

// As long as the new segment has no name the present one is as good as before.
absl::Status Journal::Compact() {
  compaction_failure_ = BeginSegment();
  if (compaction_failure_.ok()) return absl::OkStatus();
  if (file_ == nullptr || size_bytes_ > kMaxSegmentBytes / 4 * 3) {
    return Fail(compaction_failure_);
  }
  compact_at_bytes_ =
      size_bytes_ + std::min(options_.rotate_bytes, kMaxSegmentBytes / 8);
  return absl::OkStatus();
}

absl::StatusOr<std::vector<std::string>> Journal::SnapshotFrames() const {
  std::vector<std::string> frames;
  std::string piece;
  uint64_t size_bytes = 0;
  RETURN_IF_ERROR(state_.WriteSnapshot([&](const journal::Record& record) {
    piece.clear();
    RETURN_IF_ERROR(Encode(record, piece));
    AddPiece(piece, /*alone=*/false, frames);
    size_bytes += piece.size();
    if (size_bytes > kMaxSnapshotBytes) {
      return absl::ResourceExhaustedError(absl::StrCat(
          "a snapshot of more than ", kMaxSnapshotBytes, " bytes"));
    }
    return absl::OkStatus();
  }));
  return frames;
}

// Writes the state to `name`, and all of it to the disk.
absl::StatusOr<Journal::Segment> Journal::WriteSegment(const std::string& name,
                                                       uint64_t number) {
  ASSIGN_OR_RETURN(std::vector<std::string> frames, SnapshotFrames());
  Segment segment;
  segment.number = number;
  segment.next_sequence = next_sequence_;
  segment.size_bytes = kSegmentHeaderBytes;
  for (std::string& frame : frames) {
    SealFrame(segment.next_sequence++, options_.salt, frame);
    segment.size_bytes += frame.size();
  }
  ASSIGN_OR_RETURN(segment.file, disk_.Create(name));
  RETURN_IF_ERROR(segment.file->Append(
      EncodeHeader({number, next_sequence_, segment.size_bytes,
                    options_.checkpoint, options_.salt})));
  for (const std::string& frame : frames) {
    RETURN_IF_ERROR(segment.file->Append(frame));
  }
  RETURN_IF_ERROR(segment.file->Sync());
  return segment;
}

// Writes the state as the next segment and goes on there. On error `file_` is
// as it was if the new one has no name, null if it may have.
absl::Status Journal::BeginSegment() {
  if (old_segments_.size() > kMaxOldSegments) {
    RETURN_IF_ERROR(disk_.SyncNames());  // the newest may be new to the disk
    RemoveOldSegments();
  }
  if (old_segments_.size() > kMaxOldSegments) {
    return absl::ResourceExhaustedError(absl::StrCat(
        old_segments_.size(), " old segments cannot be removed, ",
        disk_.Describe(SegmentName(old_segments_[0])), " among them"));
  }
  const uint64_t number = number_ + 1;
  const std::string temporary = TemporarySegmentName(number);
  auto segment = WriteSegment(temporary, number);
  absl::Status status = segment.status();
  if (status.ok()) {
    // From here on the next opening may read the new one.
    file_.reset();
    status = disk_.Rename(temporary, SegmentName(number));
    if (status.ok()) status = disk_.SyncNames();
  }
  if (!status.ok()) {
    disk_.Remove(temporary).IgnoreError();  // if only to make room
    return status;
  }
  compaction_failure_ = absl::OkStatus();
  if (number_ > 0) old_segments_.push_back(number_);
  number_ = number;
  file_ = std::move(segment->file);
  size_bytes_ = segment->size_bytes;
  next_sequence_ = segment->next_sequence;
  compact_at_bytes_ =
      std::min(size_bytes_ + std::max(options_.rotate_bytes, size_bytes_),
               kMaxSegmentBytes / 2);
  ++figures_.segments;
  figures_.bytes_written += size_bytes_;
  ++figures_.syncs;
  RemoveOldSegments();
  return absl::OkStatus();
}

void Journal::RemoveOldSegments() {
  std::erase_if(old_segments_, [this](uint64_t number) {
    const absl::Status removed = disk_.Remove(SegmentName(number));
    return removed.ok() || absl::IsNotFound(removed);
  });
}

}  // namespace moebius
