// How a group gets from one layout to another. A pure machine: no clock,
// lock, log or I/O; time and messages arrive as events, orders leave as
// effects.
//
//            Requested                    all prepared
//   Steady ------------> Preparing ------------------------> Committing
//     ^                      |                                    |
//     |   refused, expired,  |                                    |
//     +----------------------+           all switched             |
//     +-----------------------------------------------------------+
//
// GroupHalts leads from Preparing back to Steady; a committed switch waits for
// everyone anew.
//
// A logged decision is final: once Committing, no event leads back. Faults from
// there on are mended by rolling forward. Epochs are never reused, also not
// those of attempts that failed.
#pragma once

#include <cstdint>
#include <string>
#include <variant>
#include <vector>

#include "absl/status/statusor.h"
#include "common/base/ids.h"
#include "common/layout/layout.h"
#include "coordinator/decisions/rank_set.h"

namespace moebius {

// ---- states ----------------------------------------------------------------

// `proposed` is the highest epoch ever used, 0 before the first.
struct Steady {
  Layout layout;
  Epoch proposed;
  friend bool operator==(const Steady&, const Steady&) = default;
};
// PREPARE(epoch) is out; no step is issued until this state ends.
struct Preparing {
  Layout from, target;
  Epoch epoch;
  RankSet unprepared;
  friend bool operator==(const Preparing&, const Preparing&) = default;
};
// The decision is logged. Steps from `boundary` on carry `target`.
struct Committing {
  Layout from, target;
  Epoch epoch;
  StepId boundary;
  RankSet unswitched;
  friend bool operator==(const Committing&, const Committing&) = default;
};
using LayoutState = std::variant<Steady, Preparing, Committing>;

// ---- events ----------------------------------------------------------------

// Somebody, or the policy, wants a layout.
struct Requested {
  Layout target;
};
// No KV plan fits: raised by the host in place of sending PREPARE.
struct PlanRefused {
  Epoch epoch;
  std::string reason;
};
struct PreparedBy {
  Rank rank = 0;
  Epoch epoch;
};
struct RefusedBy {
  Rank rank = 0;
  Epoch epoch;
  std::string reason;
};
struct PrepareExpired {
  Epoch epoch;
};
struct SwitchedBy {
  Rank rank = 0;
  Epoch epoch;
};
struct SwitchExpired {
  Epoch epoch;
};
// A round of recovery begins: every worker stops where it is, and a committed
// switch will be finished by all of them when they resume.
struct GroupHalts {};
using LayoutEvent =
    std::variant<Requested, PlanRefused, PreparedBy, RefusedBy, PrepareExpired,
                 SwitchedBy, SwitchExpired, GroupHalts>;

// ---- effects, to be carried out in order -----------------------------------

// Plan the KV pages and send PREPARE to every rank, and start its timer; raise
// PlanRefused if there is no plan.
struct SendPrepare {
  Epoch epoch;
  Layout target;
  friend bool operator==(const SendPrepare&, const SendPrepare&) = default;
};
// Make the decision durable before any later effect is carried out.
struct LogDecision {
  Epoch epoch;
  Layout target;
  StepId boundary;
  friend bool operator==(const LogDecision&, const LogDecision&) = default;
};
// Apply the plan to the tables, send COMMIT to every rank, start its timer.
struct SendCommit {
  Epoch epoch;
  StepId boundary;
  friend bool operator==(const SendCommit&, const SendCommit&) = default;
};
// Send ABORT to every rank.
struct SendAbort {
  Epoch epoch;
  friend bool operator==(const SendAbort&, const SendAbort&) = default;
};
// The switch is complete on every rank: answer whoever asked.
struct Done {
  Epoch epoch;
  Layout layout;
  friend bool operator==(const Done&, const Done&) = default;
};
// The attempt has ended without a change: answer whoever asked.
struct Refused {
  Epoch epoch;
  std::string reason;
  friend bool operator==(const Refused&, const Refused&) = default;
};
// The request is answered at once; the state is as it was.
struct NothingToDo {
  Layout layout;
  friend bool operator==(const NothingToDo&, const NothingToDo&) = default;
};
struct Busy {
  Epoch epoch;  // of the attempt under way
  friend bool operator==(const Busy&, const Busy&) = default;
};
// A committed switch makes no progress: the group must be halted and resumed.
// It is neither undone nor given up.
struct ReportStalled {
  Epoch epoch;
  RankSet unswitched;
  friend bool operator==(const ReportStalled&, const ReportStalled&) = default;
};
using LayoutEffect =
    std::variant<SendPrepare, LogDecision, SendCommit, SendAbort, Done, Refused,
                 NothingToDo, Busy, ReportStalled>;

struct Transition {
  LayoutState next;
  std::vector<LayoutEffect> effects;
};

// Equal inputs give equal outputs.
//   next_unissued  first step that no worker has been told to run; a commit
//                  lands there
// Answers and timers of earlier epochs, and repeated answers, change nothing
// and have no effects.
// kFailedPrecondition for what cannot happen in this state: an answer to an
// epoch never proposed or to a question not yet asked.
// kInvalidArgument for a rank or layout that the group does not have.
absl::StatusOr<Transition> Next(const LayoutState& state,
                                const LayoutEvent& event, StepId next_unissued,
                                int num_ranks);

// Layout that steps issued now must carry. Preparing: the old one, though none
// may be issued. Committing: the target.
Layout LayoutOf(const LayoutState& state);

}  // namespace moebius
