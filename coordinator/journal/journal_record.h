// What the journal says, as plain values: everything that the coordinator may
// not forget when it dies. journal_codec.h turns records into bytes and back,
// journal_state.h says what they mean and which may follow which.
//
// Names of records are in a namespace of their own: some are also those of
// messages and events.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "absl/status/status.h"
#include "common/base/ids.h"
#include "common/config/config.h"
#include "common/layout/kv_plan.h"
#include "common/layout/layout.h"
#include "common/step/step_result.h"
#include "coordinator/generation.h"
#include "coordinator/journal/operation.h"

namespace moebius::journal {

// Bounds of one record. A record of more bytes is refused when it is appended;
// the steps' tokens are cut to several instead.
inline constexpr size_t kMaxRecordBytes = size_t{64} << 20;
inline constexpr size_t kMaxContextBytes = size_t{5} << 20;
inline constexpr size_t kMaxPromptTokens = size_t{1} << 26;  // of a request
inline constexpr size_t kMaxStopReasonBytes = 4096;

// ---- terms and incarnations ------------------------------------------------

// A coordinator begins.
struct TermBegun {
  Term term;
  friend bool operator==(const TermBegun&, const TermBegun&) = default;
};

// Every worker has loaded its weights anew, in this layout: nothing is left of
// an earlier group's memory, nor of a switch that was decided in it.
struct GroupBegun {
  Layout layout;
  friend bool operator==(const GroupBegun&, const GroupBegun&) = default;
};

struct WorkerJoined {
  Rank rank = 0;
  Incarnation incarnation;
  friend bool operator==(const WorkerJoined&, const WorkerJoined&) = default;
};

// ---- requests --------------------------------------------------------------

struct AcceptedGeneration {
  RequestId request;
  Generation generation;
  friend bool operator==(const AcceptedGeneration&,
                         const AcceptedGeneration&) = default;
};

// One request, all its choices under consecutive ids. The first of them names
// the request where it is spoken of as a whole.
struct Accepted {
  std::vector<AcceptedGeneration> generations;
  std::string context;  // what the front needs to answer it again
  int64_t unix_ms = 0;
  friend bool operator==(const Accepted&, const Accepted&) = default;
};

// What a step added to one generation, as the scheduler hands it out. Slots
// mean nothing beyond their step and are not written: they are read as 0.
struct AddedToken {
  RequestId request;
  SampledToken token;
  std::vector<PromptLogprob> prompt_logprobs;  // with the first token
  friend bool operator==(const AddedToken&, const AddedToken&) = default;
};

// What a step added. Several of one step say the same as one of them all.
struct StepTokens {
  StepId step;
  std::vector<AddedToken> tokens;
  friend bool operator==(const StepTokens&, const StepTokens&) = default;
};

struct Ended {
  RequestId request;  // one generation
  FinishReason finish = FinishReason::kStop;
  std::string stop_reason;
  int64_t unix_ms = 0;
  friend bool operator==(const Ended&, const Ended&) = default;
};

// The result of a request, all its choices, is kept no longer.
struct Forgotten {
  RequestId request;  // the first of its ids
  friend bool operator==(const Forgotten&, const Forgotten&) = default;
};

// ---- layouts ---------------------------------------------------------------

// This number is used, whatever becomes of the attempt.
struct EpochProposed {
  Epoch epoch;
  friend bool operator==(const EpochProposed&, const EpochProposed&) = default;
};

struct RunningSequence {
  RequestId request;
  uint32_t slot = 0;
  uint32_t computed = 0;  // positions whose KV is in the pages
  friend bool operator==(const RunningSequence&,
                         const RunningSequence&) = default;
};

// A switch is decided: final from here on, whatever dies. On disk before any
// worker hears of it.
struct SwitchDecided {
  Epoch epoch;
  Layout from, to;
  StepId boundary;
  KvPlan plan;
  std::vector<RunningSequence> running;
  friend bool operator==(const SwitchDecided&, const SwitchDecided&) = default;
};

// Complete on every rank.
struct SwitchDone {
  Epoch epoch;
  friend bool operator==(const SwitchDone&, const SwitchDone&) = default;
};

// What was asked for by hand: a layout, or that the policy chooses.
struct LayoutChosen {
  LayoutChoice choice = LayoutChoice::kEp;
  friend bool operator==(const LayoutChosen&, const LayoutChosen&) = default;
};

// ---- what operators ask for ------------------------------------------------

// New requests are taken no more, or again.
struct DrainSet {
  bool draining = false;
  friend bool operator==(const DrainSet&, const DrainSet&) = default;
};

struct OperationBegun {
  Operation operation;
  int64_t unix_ms = 0;
  Epoch decided;  // the last switch decided before
  friend bool operator==(const OperationBegun&,
                         const OperationBegun&) = default;
};

struct OperationEnded {
  std::string id;
  OperationEnd end;
  friend bool operator==(const OperationEnded&,
                         const OperationEnded&) = default;
};

// ---- snapshots -------------------------------------------------------------

// The numbers of a state that its requests do not tell. Only in a snapshot,
// after the requests.
struct Summary {
  Term term;
  std::array<Incarnation, kMaxRanks> incarnations{};  // 0: none yet
  Epoch proposed, decided;                            // the last ones
  StepId last_step;
  RequestId next_request;  // ids below it are used
  std::optional<Layout> layout;
  std::optional<Layout> left;  // by the last switch done
  std::optional<LayoutChoice> choice;
  bool draining = false;
  friend bool operator==(const Summary&, const Summary&) = default;
};

using Record = std::variant<TermBegun, GroupBegun, WorkerJoined, Accepted,
                            StepTokens, Ended, Forgotten, EpochProposed,
                            SwitchDecided, SwitchDone, LayoutChosen, Summary,
                            DrainSet, OperationBegun, OperationEnded>;

// Whether the record could be true in any state: ids that exist, numbers within
// their ranges, lists within their bounds. What passes survives the codec.
// kInvalidArgument with the reason.
absl::Status Validate(const Record& record);

}  // namespace moebius::journal
