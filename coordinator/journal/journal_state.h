// What a journal says so far: the meaning of its records, one after the other.
// Pure: no clock, lock, log or I/O.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "coordinator/journal/journal_record.h"

namespace moebius {

// One choice of a request.
struct JournalChoice {
  struct Finish {
    FinishReason reason = FinishReason::kStop;
    std::string stop_reason;
    int64_t unix_ms = 0;
    friend bool operator==(const Finish&, const Finish&) = default;
  };
  Generation generation;
  // What was drawn, in order. What goes with the tokens is empty as long as
  // there is none of it: most requests do not ask for it.
  std::vector<int32_t> tokens;
  std::vector<float> logprobs;
  std::vector<std::vector<TokenLogprob>> top;
  std::vector<PromptLogprob> prompt_logprobs;  // their slots are 0
  std::optional<Finish> finish;

  // Token `index` as it was drawn; its slot is 0.
  SampledToken TokenAt(size_t index) const;
  friend bool operator==(const JournalChoice&, const JournalChoice&) = default;
};

struct JournalRequest {
  std::string context;
  int64_t unix_ms = 0;                 // accepted
  std::vector<JournalChoice> choices;  // ids: the request's, and those after it
  size_t num_unfinished = 0;
  uint64_t size_bytes = 0;  // about what it takes in memory, once it has ended
  // REQUIRES: num_unfinished == 0. When the last choice ended.
  int64_t ended_unix_ms() const;
  friend bool operator==(const JournalRequest&,
                         const JournalRequest&) = default;
};

// JournalState
//
// Apply() takes records in; Snapshot() gives records whose replay, from
// nothing, gives an equal state. The state after a journal's records is the
// state of the journal, so a snapshot may stand in their place.
//
// Cost: Apply() of a step takes time in proportion to its tokens, times the
// logarithm of the number of requests. A token takes 4 bytes, or 32 and more
// with log-probabilities.
// Threading: thread-compatible.
class JournalState {
 public:
  // Requests by the first of their ids.
  using Requests = std::map<RequestId, JournalRequest>;

  // Takes in what happened next. Errors, changing nothing:
  //   kInvalidArgument     Validate() says no
  //   kNotFound            an unknown request
  //   kAlreadyExists       an id that was given before
  //   kFailedPrecondition  what cannot follow: a number that does not go up, a
  //                        gap in a request's tokens, tokens of one that has
  //                        ended, a switch that does not begin where the last
  //                        one led or is done without having been decided, ...
  absl::Status Apply(journal::Record record);

  // The snapshot, record by record, none of them large. Stops at an error of
  // `take`, and returns it.
  using SnapshotSink = absl::FunctionRef<absl::Status(const journal::Record&)>;
  absl::Status WriteSnapshot(SnapshotSink take) const;
  std::vector<journal::Record> Snapshot() const;

  // Requests whose results are to be forgotten, oldest first: those that had
  // ended before `unix_ms`, and as many more of the oldest ended ones as leave
  // at most `max_kept` of them, and `max_bytes`. Each stands for all its
  // choices and is to be appended as Forgotten.
  std::vector<RequestId> ForgetEndedBefore(int64_t unix_ms, size_t max_kept,
                                           uint64_t max_bytes) const;

  Term term() const { return numbers_.term; }
  // 0 when none of that rank has joined.
  Incarnation incarnation(Rank rank) const {
    return numbers_.incarnations[rank];
  }
  // Highest epoch ever proposed, and ever decided.
  Epoch proposed() const { return numbers_.proposed; }
  Epoch decided() const { return numbers_.decided; }
  // A decided switch that is not done. `running` has lost those that have ended
  // since.
  const std::optional<journal::SwitchDecided>& undone() const {
    return undone_;
  }
  // Of the last switch that is done, or that weights were loaded in; none when
  // the journal does not say.
  std::optional<Layout> layout() const { return numbers_.layout; }
  // That the last switch done has left; none when the group had no switch yet.
  std::optional<Layout> left() const { return numbers_.left; }
  std::optional<LayoutChoice> choice() const { return numbers_.choice; }
  StepId last_step() const { return numbers_.last_step; }
  // The lowest id that was never used.
  RequestId next_request() const { return numbers_.next_request; }
  const Requests& requests() const { return requests_; }
  // Whether operators have drained the group.
  bool draining() const { return numbers_.draining; }
  // By their beginning: all that have not ended, and the last of the others.
  const std::vector<KnownOperation>& operations() const { return operations_; }
  // The choice with this id, or null.
  const JournalChoice* Find(RequestId id) const;

  friend bool operator==(const JournalState&, const JournalState&) = default;

 private:
  struct Place {
    JournalRequest* request = nullptr;
    JournalChoice* choice = nullptr;
  };

  absl::Status Take(journal::TermBegun record);
  absl::Status Take(journal::GroupBegun record);
  absl::Status Take(journal::WorkerJoined record);
  absl::Status Take(journal::Accepted record);
  absl::Status Take(journal::StepTokens record);
  absl::Status Take(journal::Ended record);
  absl::Status Take(journal::Forgotten record);
  absl::Status Take(journal::EpochProposed record);
  absl::Status Take(journal::SwitchDecided record);
  absl::Status Take(journal::SwitchDone record);
  absl::Status Take(journal::LayoutChosen record);
  absl::Status Take(journal::Summary record);
  absl::Status Take(journal::DrainSet record);
  absl::Status Take(journal::OperationBegun record);
  absl::Status Take(journal::OperationEnded record);

  Place PlaceOf(RequestId id);
  // [token] the choice it belongs to; null: unknown.
  std::vector<JournalChoice*> ChoicesOf(
      const std::vector<journal::AddedToken>& tokens);
  absl::Status SnapshotAccepted(SnapshotSink take) const;
  absl::Status SnapshotTokens(SnapshotSink take) const;
  absl::Status SnapshotEnds(SnapshotSink take) const;
  absl::Status SnapshotOperations(SnapshotSink take) const;

  journal::Summary numbers_{.next_request = RequestId{1}};
  std::optional<journal::SwitchDecided> undone_;
  Requests requests_;
  std::vector<KnownOperation> operations_;
};

}  // namespace moebius
