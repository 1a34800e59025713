// Which workers take part, and rounds of recovery. A pure machine: no clock,
// lock, log or I/O; time and messages arrive as events, orders leave as
// effects.
//
//             all have joined            all have halted
//   Gathering ---------------> Halting --------------------> Running
//      ^                       ^  |  |                         |  ^
//      |   a worker is lost,   |  |  | some memory is new      |  | all have
//      |   or is not done      |  |  +--------> Loading -------+--+ loaded
//      |   in time             |  |                |           |
//      +-----------------------+--+----------------+-----------+
//                              a successor joins, a worker was interrupted
//
// The group begins in Gathering, and every trouble leads through it or straight
// into Halting: there is one way in which service begins and goes on.
#pragma once

#include <cstdint>
#include <variant>
#include <vector>

#include "absl/status/statusor.h"
#include "common/base/ids.h"
#include "coordinator/decisions/rank_set.h"

namespace moebius {

// ---- states ----------------------------------------------------------------

// `missing` have no incarnation that said Hello. `round` is the last one begun.
struct Gathering {
  RankSet missing;
  uint64_t round = 0;
  friend bool operator==(const Gathering&, const Gathering&) = default;
};
// HALT(round) is out.
struct Halting {
  RankSet unhalted;
  uint64_t round = 0;
  int asked = 1;  // how often
  RankSet empty;  // have halted, and no weights are in their memory
  friend bool operator==(const Halting&, const Halting&) = default;
};
// All have halted, LOAD(round) is out.
struct Loading {
  RankSet unloaded;
  uint64_t round = 0;
  friend bool operator==(const Loading&, const Loading&) = default;
};
// RESUME(round) is out.
struct Running {
  uint64_t round = 0;
  friend bool operator==(const Running&, const Running&) = default;
};
using MembershipState = std::variant<Gathering, Halting, Loading, Running>;

// ---- events ----------------------------------------------------------------

// An incarnation of the worker that is new to us said Hello.
struct WorkerJoined {
  Rank rank = 0;
};
// A worker cannot be reached, or said that it ends.
struct WorkerLost {
  Rank rank = 0;
};
// A worker has halted by itself, messages were lost, or no result came in time.
struct GroupInterrupted {};
struct WorkerHalted {
  Rank rank = 0;
  uint64_t round = 0;
  bool empty = false;  // no weights are in its memory
};
struct WorkerLoaded {
  Rank rank = 0;
  uint64_t round = 0;
};
// The timer of HALT(round), or of LOAD(round).
struct RoundExpired {
  uint64_t round = 0;
};
using MembershipEvent = std::variant<WorkerJoined, WorkerLost, GroupInterrupted,
                                     WorkerHalted, WorkerLoaded, RoundExpired>;

// ---- effects, to be carried out in order -----------------------------------

// Send HALT to these ranks and start its timer.
struct SendHalt {
  uint64_t round = 0;
  RankSet ranks;
  friend bool operator==(const SendHalt&, const SendHalt&) = default;
};
// All have halted. Send LOAD to these ranks and start its timer.
struct SendLoad {
  uint64_t round = 0;
  RankSet ranks;
  friend bool operator==(const SendLoad&, const SendLoad&) = default;
};
// All have halted and have weights: restore, resume.
struct ResumeGroup {
  uint64_t round = 0;
  friend bool operator==(const ResumeGroup&, const ResumeGroup&) = default;
};
// These workers are of no more use: have them ended, so that successors join.
struct ReplaceWorkers {
  RankSet ranks;
  friend bool operator==(const ReplaceWorkers&,
                         const ReplaceWorkers&) = default;
};
using MembershipEffect =
    std::variant<SendHalt, SendLoad, ResumeGroup, ReplaceWorkers>;

struct MembershipTransition {
  MembershipState next;
  std::vector<MembershipEffect> effects;
};

// Equal inputs give equal outputs.
//   max_asked  HALTs that a worker may leave unanswered before it is replaced
// Answers and timers of earlier rounds, and repeated answers, change nothing.
// kInvalidArgument for a rank that the group does not have.
absl::StatusOr<MembershipTransition> Next(const MembershipState& state,
                                          const MembershipEvent& event,
                                          int num_ranks, int max_asked);

}  // namespace moebius
