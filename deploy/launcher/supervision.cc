#include "deploy/launcher/supervision.h"

#include <algorithm>
#include <csignal>
#include <cstring>
#include <type_traits>
#include <utility>

#include "absl/status/status.h"
#include "common/base/cat.h"
#include "common/base/exit_code.h"

namespace moebius {
namespace {

template <typename... Fs>
struct Overloaded : Fs... {
  using Fs::operator()...;
};
template <typename... Fs>
Overloaded(Fs...) -> Overloaded<Fs...>;

GroupTransition Stay(GroupState state) {
  return GroupTransition{std::move(state), {}};
}

ChildSet AliveIn(const GroupState& state) {
  return std::visit(Overloaded{
                        [](const GroupEnded&) { return ChildSet(); },
                        [](const auto& other) { return other.alive; },
                    },
                    state);
}

// "worker 1 was killed by signal 9 (Killed)".
std::string Describe(const ChildExited& exit) {
  const std::string name = ChildName(exit.child);
  if (!exit.failure.empty()) return Cat(name, ": ", exit.failure);
  if (exit.signal != 0) {
    const char* text = ::sigdescr_np(exit.signal);
    return Cat(name, " was killed by signal ", exit.signal, " (",
               text == nullptr ? "unknown" : text, ")",
               exit.stalled ? ", for it made no progress" : "");
  }
  return Cat(name, " ended with exit code ", exit.exit_code,
             " without being told to");
}

// Everyone is told to end. With nobody left that is the end.
GroupTransition End(const SupervisionPolicy& policy, ChildSet alive,
                    int exit_code, std::string message, bool kill) {
  if (alive.empty()) return Stay(GroupEnded{exit_code, std::move(message)});
  GroupTransition transition =
      Stay(GroupEnding{alive, exit_code, std::move(message), kill});
  transition.effects.push_back(SignalChildren{alive, kill ? SIGKILL : SIGTERM});
  if (!kill) transition.effects.push_back(SetDeadline{policy.end_timeout_ms});
  return transition;
}

GroupEffect TellCoordinator() {
  return SignalChildren{ChildSet::Of(kCoordinatorChild), SIGTERM};
}

GroupTransition OnReady(const GroupStarting& state, ChildId child) {
  GroupStarting next = state;
  next.unready = next.unready.Without(child);
  if (!next.unready.empty() || state.unready.empty()) return Stay(next);
  GroupTransition transition =
      Stay(GroupServing{next.alive, next.down, next.early_deaths});
  transition.effects.push_back(AnnounceReady{});
  return transition;
}

GroupTransition OnReady(const GroupState& state, ChildId child) {
  if (const auto* starting = std::get_if<GroupStarting>(&state)) {
    return OnReady(*starting, child);
  }
  GroupTransition transition = Stay(state);
  // A successor of the coordinator knows nothing of the drain yet.
  if (std::holds_alternative<GroupDraining>(state) &&
      child == kCoordinatorChild) {
    transition.effects.push_back(TellCoordinator());
  }
  return transition;
}

// Milliseconds to wait after `early_deaths` in a row: the first two may be one
// accident.
int PauseMs(int early_deaths) {
  constexpr int kFirstMs = 100, kMostMs = 5000;
  if (early_deaths <= 2) return 0;
  return std::min(kMostMs, kFirstMs << std::min(early_deaths - 3, 10));
}

// A worker's word is taken. A coordinator's is not once the group serves: with
// it the workers' memory would go, and somebody may mend the file that it
// cannot read before it is given up.
bool IsLasting(const ChildExited& exit) {
  return exit.lasting && exit.child != kCoordinatorChild;
}

// Early deaths in a row after this exit. Saturates: beyond max_early_deaths it
// only says that there were more than enough.
uint8_t CountShort(const SupervisionPolicy& policy, uint8_t count,
                   const ChildExited& exit) {
  const auto enough = static_cast<uint8_t>(policy.max_early_deaths + 1);
  if (IsLasting(exit)) return enough;
  if (exit.lived_ms >= policy.early_death_ms) return 0;
  return count >= enough ? count : count + 1;
}

// An exit that does not end the group: the process is replaced. `state` is one
// that has `down`.
template <typename State>
GroupTransition Replace(const SupervisionPolicy& policy, State state,
                        ChildSet alive, const ChildExited& exit) {
  const std::string said = Describe(exit);
  uint8_t& count = state.early_deaths.of(exit.child);
  const bool was_hopeless = count > policy.max_early_deaths;
  count = CountShort(policy, count, exit);
  const bool hopeless = count > policy.max_early_deaths;
  constexpr bool kStarting = std::is_same_v<State, GroupStarting>;
  const std::string why =
      IsLasting(exit)
          ? said
          : Cat(said, "; ", static_cast<int>(count), " processes in a row ",
                kStarting
                    ? "did not come to serve"
                    : Cat("lasted less than ", policy.early_death_ms, " ms"));
  if (hopeless && (exit.child == kCoordinatorChild || kStarting)) {
    return End(policy, alive, 1, why, false);
  }
  const int pause_ms = hopeless ? policy.hopeless_pause_ms : PauseMs(count);
  state.alive = alive;
  state.down = state.down.With(exit.child);
  if constexpr (std::is_same_v<State, GroupServing>) {
    if (exit.child == kCoordinatorChild) state.stray_stop = false;
  }
  GroupTransition transition = Stay(std::move(state));
  transition.effects.push_back(
      Say{pause_ms == 0
              ? Cat(said, "; a successor takes over")
              : Cat(said, "; a successor takes over in ", pause_ms, " ms")});
  if (hopeless) {
    transition.effects.push_back(
        TellTrouble{exit.child, Cat(why, ", it is tried again every ",
                                    policy.hopeless_pause_ms / 1000, " s")});
  } else if (was_hopeless) {
    transition.effects.push_back(TellTrouble{exit.child, ""});
  }
  transition.effects.push_back(ScheduleStart{exit.child, pause_ms});
  return transition;
}

// An exit before anybody was told to end.
GroupTransition OnEarlyExit(const SupervisionPolicy& policy, ChildSet alive,
                            const ChildExited& exit) {
  const bool well = policy.one_shot && exit.child == kCoordinatorChild &&
                    exit.signal == 0 && exit.exit_code == 0;
  if (well) return End(policy, alive, 0, "", false);
  // A coordinator that is done sends its workers home, and they may be quicker
  // than it is.
  if (policy.one_shot && exit.signal == 0 && exit.exit_code == 0) {
    GroupTransition transition = Stay(GroupDraining{alive, {}, {}});
    transition.effects.push_back(
        SetDeadline{policy.drain_timeout_ms + policy.drain_margin_ms});
    return transition;
  }
  return End(policy, alive, 1, Describe(exit), false);
}

// Whatever it says of itself it would say again; one that was killed need not
// be killed again.
GroupTransition OnExitWhileStarting(const SupervisionPolicy& policy,
                                    GroupStarting state, ChildSet alive,
                                    const ChildExited& exit) {
  const bool killed = exit.signal != 0 && exit.failure.empty();
  if (!killed || (policy.one_shot && exit.child == kCoordinatorChild)) {
    return OnEarlyExit(policy, alive, exit);
  }
  // However long it has loaded: it never came to serve.
  ChildExited early = exit;
  early.lived_ms = 0;
  state.unready = state.unready.With(exit.child);
  return Replace(policy, std::move(state), alive, early);
}

GroupTransition OnExitWhileServing(const SupervisionPolicy& policy,
                                   const GroupServing& state, ChildSet alive,
                                   const ChildExited& exit) {
  // A worker of a task that ends well was sent home; a coordinator that ends
  // well was told to, and a task's takes its work with it.
  const bool well = exit.signal == 0 && exit.exit_code == 0;
  if ((exit.child == kCoordinatorChild && (well || policy.one_shot)) ||
      (policy.one_shot && well)) {
    return OnEarlyExit(policy, alive, exit);
  }
  return Replace(policy, state, alive, exit);
}

GroupTransition OnExitInDrain(const SupervisionPolicy& policy,
                              const GroupDraining& state, ChildSet alive,
                              const ChildExited& exit) {
  const bool is_coordinator = exit.child == kCoordinatorChild;
  if (is_coordinator && exit.signal == 0 && exit.exit_code == kExitDrainCut) {
    return End(policy, alive, kExitDrainCut,
               exit.failure.empty() ? Describe(exit) : exit.failure, false);
  }
  if (exit.signal != 0 || exit.exit_code != 0) {
    if (is_coordinator && policy.one_shot) {
      return End(policy, alive, 1, Describe(exit), false);
    }
    return Replace(policy, state, alive, exit);
  }
  // The coordinator ends last: before it, workers go on its word.
  if (is_coordinator) return End(policy, alive, 0, "", false);
  GroupDraining next = state;
  next.alive = alive;
  return Stay(next);
}

GroupTransition OnExitInEnd(GroupEnding state, ChildSet alive,
                            const ChildExited& exit) {
  // Exits by our own signals are no news; what a child says of itself is, once.
  if (!exit.failure.empty()) {
    if (state.exit_code == 0) state.exit_code = 1;
    if (state.message.find(exit.failure) == std::string::npos) {
      state.message += Cat(state.message.empty() ? "" : "\n", Describe(exit));
    }
  }
  if (alive.empty()) {
    return Stay(GroupEnded{state.exit_code, std::move(state.message)});
  }
  state.alive = alive;
  return Stay(std::move(state));
}

GroupTransition OnExit(const SupervisionPolicy& policy, const GroupState& state,
                       ChildSet alive, const ChildExited& exit) {
  return std::visit(
      Overloaded{
          [&](const GroupStarting& starting) {
            return OnExitWhileStarting(policy, starting, alive, exit);
          },
          [&](const GroupServing& serving) {
            return OnExitWhileServing(policy, serving, alive, exit);
          },
          [&](const GroupDraining& draining) {
            return OnExitInDrain(policy, draining, alive, exit);
          },
          [&](const GroupEnding& ending) {
            return OnExitInEnd(ending, alive, exit);
          },
          [&](const GroupEnded& ended) { return Stay(ended); },
      },
      state);
}

GroupTransition BeginDrain(const SupervisionPolicy& policy,
                           const GroupServing& state) {
  GroupTransition transition =
      Stay(GroupDraining{state.alive, state.down, state.early_deaths});
  transition.effects.push_back(
      Say{"draining: requests in flight go on, new ones are refused; a second "
          "signal ends at once"});
  // A coordinator that is being replaced is told when it is ready.
  if (state.alive.contains(kCoordinatorChild)) {
    transition.effects.push_back(TellCoordinator());
  }
  transition.effects.push_back(
      SetDeadline{policy.drain_timeout_ms + policy.drain_margin_ms});
  return transition;
}

GroupTransition OnStop(const SupervisionPolicy& policy,
                       const GroupState& state) {
  return std::visit(
      Overloaded{
          [&](const GroupStarting& starting) {
            // Nothing was accepted, and a worker that loads hears no SIGTERM.
            GroupTransition transition =
                End(policy, starting.alive, 0, "", true);
            transition.effects.push_back(Say{"stopped before it was ready"});
            return transition;
          },
          [&](const GroupServing& serving) {
            // A task is broken off; a server drains.
            if (policy.one_shot) {
              return End(policy, serving.alive, 1, "interrupted", true);
            }
            return BeginDrain(policy, serving);
          },
          [&](const GroupDraining& draining) {
            return End(policy, draining.alive, 1,
                       "stopped at once, before the requests in flight had "
                       "ended",
                       true);
          },
          [&](const GroupEnding& ending) {
            if (ending.killed) return Stay(ending);
            return End(policy, ending.alive, ending.exit_code, ending.message,
                       true);
          },
          [&](const GroupEnded& ended) { return Stay(ended); },
      },
      state);
}

// Signals of one kind that wait are one, and name their first sender: ours may
// have gone into another's. So it is sent again where it was meant.
GroupTransition OnStrayStop(const SupervisionPolicy& policy,
                            const GroupState& state) {
  GroupTransition transition = Stay(state);
  if (auto* serving = std::get_if<GroupServing>(&transition.next)) {
    if (serving->stray_stop || !serving->alive.contains(kCoordinatorChild)) {
      return transition;
    }
    serving->stray_stop = true;
    transition.effects.push_back(SetDeadline{policy.stray_stop_ms});
    return transition;
  }
  const auto* ending = std::get_if<GroupEnding>(&state);
  const bool told = std::holds_alternative<GroupDraining>(state) ||
                    (ending != nullptr && !ending->killed);
  if (told && AliveIn(state).contains(kCoordinatorChild)) {
    transition.effects.push_back(TellCoordinator());
  }
  return transition;
}

GroupTransition OnDeadline(const SupervisionPolicy& policy,
                           const GroupState& state) {
  if (const auto* serving = std::get_if<GroupServing>(&state)) {
    if (!serving->stray_stop) return Stay(state);  // late
    GroupServing next = *serving;
    next.stray_stop = false;
    GroupTransition transition = Stay(next);
    transition.effects.push_back(
        Say{"somebody else told the coordinator to end: it is replaced"});
    transition.effects.push_back(
        SignalChildren{ChildSet::Of(kCoordinatorChild), SIGKILL});
    return transition;
  }
  if (const auto* draining = std::get_if<GroupDraining>(&state)) {
    return End(policy, draining->alive, kExitDrainCut,
               Cat("the drain did not end within ",
                   policy.drain_timeout_ms + policy.drain_margin_ms,
                   " ms: what was in flight was cut"),
               true);
  }
  if (const auto* ending = std::get_if<GroupEnding>(&state)) {
    if (!ending->killed) {
      return End(policy, ending->alive, ending->exit_code, ending->message,
                 true);
    }
  }
  return Stay(state);
}

// `state` is one that has `down`.
template <typename State>
absl::StatusOr<GroupTransition> Start(State state, ChildId child) {
  if (!state.down.contains(child)) {
    return absl::FailedPreconditionError(
        Cat(ChildName(child), " is to be started, but is not down"));
  }
  state.down = state.down.Without(child);
  state.alive = state.alive.With(child);
  GroupTransition transition = Stay(std::move(state));
  transition.effects.push_back(StartProcess{child});
  return transition;
}

absl::StatusOr<GroupTransition> OnStartDue(const GroupState& state,
                                           ChildId child) {
  if (const auto* starting = std::get_if<GroupStarting>(&state)) {
    return Start(*starting, child);
  }
  if (const auto* serving = std::get_if<GroupServing>(&state)) {
    return Start(*serving, child);
  }
  if (const auto* draining = std::get_if<GroupDraining>(&state)) {
    return Start(*draining, child);
  }
  return Stay(state);  // too late
}

}  // namespace

std::string ChildName(ChildId child) {
  return child == kCoordinatorChild ? "coordinator" : Cat("worker ", child);
}

ChildSet ChildSet::Group(int num_workers) {
  ChildSet set = Of(kCoordinatorChild);
  for (int rank = 0; rank < num_workers; ++rank) set.bits_ |= Bit(rank);
  return set;
}

std::vector<ChildId> ChildSet::members() const {
  std::vector<ChildId> members;
  for (ChildId child = kCoordinatorChild; child < kMaxRanks; ++child) {
    if (contains(child)) members.push_back(child);
  }
  return members;
}

absl::StatusOr<GroupTransition> Supervise(const SupervisionPolicy& policy,
                                          const GroupState& state,
                                          const GroupEvent& event) {
  if (const auto* exit = std::get_if<ChildExited>(&event)) {
    const ChildSet alive = AliveIn(state);
    if (!alive.contains(exit->child)) {
      return absl::FailedPreconditionError(
          Cat(ChildName(exit->child), " ended, but was not alive"));
    }
    return OnExit(policy, state, alive.Without(exit->child), *exit);
  }
  if (const auto* ready = std::get_if<ChildReady>(&event)) {
    return OnReady(state, ready->child);
  }
  if (const auto* due = std::get_if<StartDue>(&event)) {
    return OnStartDue(state, due->child);
  }
  if (std::holds_alternative<StopRequested>(event)) {
    return OnStop(policy, state);
  }
  if (std::holds_alternative<StrayStop>(event)) {
    return OnStrayStop(policy, state);
  }
  return OnDeadline(policy, state);
}

}  // namespace moebius
