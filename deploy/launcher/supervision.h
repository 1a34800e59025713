// What the launcher does about its children: a pure table, event in, effects
// out. The host that forks, waits and signals is group.h.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <variant>
#include <vector>

#include "absl/status/statusor.h"
#include "common/base/check.h"
#include "common/base/ids.h"

namespace moebius {

// A child of the launcher: a worker's rank, or the coordinator.
using ChildId = int;
inline constexpr ChildId kCoordinatorChild = -1;

// "coordinator", "worker 3".
std::string ChildName(ChildId child);

// A set of children.
class ChildSet {
 public:
  ChildSet() = default;
  // The coordinator and `num_workers` workers.
  static ChildSet Group(int num_workers);
  static ChildSet Of(ChildId child) {
    ChildSet set;
    set.bits_ = Bit(child);
    return set;
  }

  bool contains(ChildId child) const { return (bits_ & Bit(child)) != 0; }
  bool empty() const { return bits_ == 0; }
  ChildSet With(ChildId child) const {
    ChildSet set = *this;
    set.bits_ |= Bit(child);
    return set;
  }
  ChildSet Without(ChildId child) const {
    ChildSet set = *this;
    set.bits_ &= ~Bit(child);
    return set;
  }
  std::vector<ChildId> members() const;
  friend bool operator==(const ChildSet&, const ChildSet&) = default;

 private:
  static uint32_t Bit(ChildId child) {
    CHECK(child >= kCoordinatorChild && child < kMaxRanks);
    return uint32_t{1} << (child + 1);
  }
  uint32_t bits_ = 0;
};

// How a group is run.
struct SupervisionPolicy {
  // The coordinator has a task with an end: its exit with code 0 ends the group
  // well. Otherwise it serves until it is told to stop.
  bool one_shot = false;
  int drain_timeout_ms = 30000;  // what the coordinator gives itself
  // Beyond it, for the coordinator to say so and end.
  int drain_margin_ms = 5000;
  int end_timeout_ms = 3000;  // SIGTERM to SIGKILL
  // A SIGTERM to the coordinator that is not ours may be one to everybody, ours
  // being on the way: it is replaced only after this.
  int stray_stop_ms = 300;
  // A process that dies while the group serves is replaced: at once, but after
  // a growing pause when one after another dies early. Beyond max_early_deaths
  // of a worker, or at once if it says that its failure is lasting, the group
  // is told not to be ready, and why, and the worker is tried only now and
  // then: what is accepted may yet be served. A coordinator is then given up,
  // and the group with it; so is everything when a group that has never served
  // does not come beyond that.
  int early_death_ms = 2000;
  int max_early_deaths = 8;
  int hopeless_pause_ms = 30000;
};

// How many processes of each child died early, one after another.
struct EarlyDeaths {
  std::array<uint8_t, kMaxRanks + 1> counts{};
  uint8_t& of(ChildId child) { return counts[child + 1]; }
  friend bool operator==(const EarlyDeaths&, const EarlyDeaths&) = default;
};

// ---- states ----------------------------------------------------------------

// Not everyone has reported that it is ready, and the group has never served.
// Nothing is to be lost yet: one that says that it failed ends the group, with
// its reason; one that was killed is replaced, as later.
struct GroupStarting {
  ChildSet alive, unready;
  ChildSet down;  // to be started again
  EarlyDeaths early_deaths;
  friend bool operator==(const GroupStarting&, const GroupStarting&) = default;
};
struct GroupServing {
  ChildSet alive;
  ChildSet down;  // to be started again
  EarlyDeaths early_deaths;
  // Somebody else told the coordinator to end; the deadline replaces it.
  bool stray_stop = false;
  friend bool operator==(const GroupServing&, const GroupServing&) = default;
};
// The coordinator finishes what is in flight.
struct GroupDraining {
  ChildSet alive;
  ChildSet down;
  EarlyDeaths early_deaths;
  friend bool operator==(const GroupDraining&, const GroupDraining&) = default;
};
// Everyone was told to end; `killed`: with SIGKILL.
struct GroupEnding {
  ChildSet alive;
  int exit_code = 0;
  std::string message;  // why, when exit_code is not 0
  bool killed = false;
  friend bool operator==(const GroupEnding&, const GroupEnding&) = default;
};
// Nobody is left. Final.
struct GroupEnded {
  int exit_code = 0;
  std::string message;
  friend bool operator==(const GroupEnded&, const GroupEnded&) = default;
};
using GroupState = std::variant<GroupStarting, GroupServing, GroupDraining,
                                GroupEnding, GroupEnded>;

// ---- events ----------------------------------------------------------------

// The child serves (worker) or listens (coordinator).
struct ChildReady {
  ChildId child = 0;
};
// The child was reaped.
struct ChildExited {
  ChildId child = 0;
  int exit_code = 0;    // when signal is 0
  int signal = 0;       // that killed it
  std::string failure;  // what it said about itself before, or ""
  int64_t lived_ms = 0;
  bool lasting = false;  // by its word, a successor would fail as well
  bool stalled = false;  // it was killed by us, for it made no progress
};
// The pause of a StartProcess has passed.
struct StartDue {
  ChildId child = 0;
};
// SIGTERM or SIGINT.
struct StopRequested {};
// The coordinator has got a SIGTERM that is not ours, and did not heed it.
struct StrayStop {};
// The deadline of the last SetDeadline passed.
struct DeadlinePassed {};
using GroupEvent = std::variant<ChildReady, ChildExited, StartDue,
                                StopRequested, StrayStop, DeadlinePassed>;

// ---- effects ---------------------------------------------------------------

struct SignalChildren {
  ChildSet children;
  int signal = 0;
  friend bool operator==(const SignalChildren&,
                         const SignalChildren&) = default;
};
// Replaces the deadline set before.
struct SetDeadline {
  int after_ms = 0;
  friend bool operator==(const SetDeadline&, const SetDeadline&) = default;
};
// After a pause, if not 0, raise StartDue for the child.
struct ScheduleStart {
  ChildId child = 0;
  int after_ms = 0;
  friend bool operator==(const ScheduleStart&, const ScheduleStart&) = default;
};
// Start the child again. It was reaped.
struct StartProcess {
  ChildId child = 0;
  friend bool operator==(const StartProcess&, const StartProcess&) = default;
};
// Why a worker does not stay up, for those who ask; "": it does.
struct TellTrouble {
  ChildId child = 0;
  std::string why;
  friend bool operator==(const TellTrouble&, const TellTrouble&) = default;
};
// The group serves now.
struct AnnounceReady {
  friend bool operator==(const AnnounceReady&, const AnnounceReady&) = default;
};
// What a person should know now.
struct Say {
  std::string text;
  friend bool operator==(const Say&, const Say&) = default;
};
using GroupEffect = std::variant<SignalChildren, SetDeadline, ScheduleStart,
                                 StartProcess, TellTrouble, AnnounceReady, Say>;

struct GroupTransition {
  GroupState next;
  std::vector<GroupEffect> effects;  // in order
};

// Pure: equal inputs give equal outputs. Repeated or late events change
// nothing. kFailedPrecondition: an exit of a child that is not alive, or a
// start of one that is.
absl::StatusOr<GroupTransition> Supervise(const SupervisionPolicy& policy,
                                          const GroupState& state,
                                          const GroupEvent& event);

}  // namespace moebius
