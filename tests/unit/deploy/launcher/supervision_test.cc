// What the launcher does about its children: the table, that the table names
// every pair of state and event, and a random walk.
#include "deploy/launcher/supervision.h"

#include <csignal>
#include <random>
#include <set>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/status_matchers.h"

namespace moebius {
namespace {

using ::testing::HasSubstr;

const SupervisionPolicy kServe;
const SupervisionPolicy kTask{.one_shot = true};

ChildSet Set(std::vector<ChildId> members) {
  ChildSet set = ChildSet::Group(kMaxRanks);
  for (ChildId child = kCoordinatorChild; child < kMaxRanks; ++child) {
    bool wanted = false;
    for (ChildId member : members) wanted = wanted || member == child;
    if (!wanted) set = set.Without(child);
  }
  return set;
}

// A group of two workers: -1 is the coordinator.
const ChildSet kAll = ChildSet::Group(2);

constexpr int64_t kLongMs = 10'000;  // of a process

const GroupEvent kReady0 = ChildReady{0};
const GroupEvent kStop = StopRequested{};
const GroupEvent kStray = StrayStop{};
const GroupEvent kDeadline = DeadlinePassed{};
GroupEvent Exited(ChildId child, int code = 0, int signal = 0,
                  std::string failure = "") {
  return ChildExited{child, code, signal, std::move(failure), kLongMs};
}
GroupEvent DiedYoung(ChildId child) {
  return ChildExited{child, 0, SIGKILL, "", 10};
}

const std::string kCoordinatorDied =
    "coordinator ended with exit code 0 without being told to";
const std::string kWorkerKilled = "worker 1 was killed by signal 9 (Killed)";
const std::string kAtOnce =
    "stopped at once, before the requests in flight had ended";
const std::string kDrainSaid =
    "draining: requests in flight go on, new ones are refused; a second signal "
    "ends at once";

struct Row {
  std::string name;
  SupervisionPolicy policy;
  GroupState state;
  GroupEvent event;
  GroupState next;
  std::vector<GroupEffect> effects;
};

std::vector<GroupEffect> Terminate(std::vector<ChildId> members) {
  return {SignalChildren{Set(std::move(members)), SIGTERM}, SetDeadline{3000}};
}
std::vector<GroupEffect> Kill(std::vector<ChildId> members) {
  return {SignalChildren{Set(std::move(members)), SIGKILL}};
}

EarlyDeaths Early(ChildId child, int count) {
  EarlyDeaths deaths;
  deaths.of(child) = static_cast<uint8_t>(count);
  return deaths;
}

std::vector<Row> Table() {
  const GroupStarting starting{kAll, Set({-1, 0}), {}, {}};
  const GroupServing serving{kAll, {}, {}};
  const GroupDraining draining{kAll, {}, {}};
  const GroupEnding ending{kAll, 1, "why", false};
  const GroupEnding killed{kAll, 1, "why", true};
  const GroupEnded ended{1, "why"};
  const std::vector<GroupEffect> told = {SignalChildren{Set({-1}), SIGTERM}};
  std::vector<Row> rows;
  const auto add = [&](std::string name, GroupState state, GroupEvent event,
                       GroupState next, std::vector<GroupEffect> effects = {},
                       SupervisionPolicy policy = kServe) {
    rows.push_back({std::move(name), policy, std::move(state), std::move(event),
                    std::move(next), std::move(effects)});
  };
  // Readiness.
  add("first ready", starting, kReady0, GroupStarting{kAll, Set({-1}), {}, {}});
  add("last ready", GroupStarting{kAll, Set({0}), {}, {}}, kReady0, serving,
      {AnnounceReady{}});
  add("ready twice", GroupStarting{kAll, Set({-1}), {}, {}}, kReady0,
      GroupStarting{kAll, Set({-1}), {}, {}});
  add("the last ready, with another down",
      GroupStarting{Set({-1, 0}), Set({0}), Set({1}), Early(1, 1)}, kReady0,
      GroupServing{Set({-1, 0}), Set({1}), Early(1, 1)}, {AnnounceReady{}});
  add("ready while serving", serving, kReady0, serving);
  add("ready while draining", draining, kReady0, draining);
  add("ready while ending", ending, kReady0, ending);
  add("ready at the end", ended, kReady0, ended);
  // Exits.
  // Before the group has served, who says why it fails ends it; who is killed
  // is replaced, and has to become ready again, however long it had loaded.
  add("worker says why it fails", starting, Exited(1, 1, 0, "no such file"),
      GroupEnding{Set({-1, 0}), 1, "worker 1: no such file", false},
      Terminate({-1, 0}));
  add("and is killed for it", starting, Exited(1, 0, SIGKILL, "no such file"),
      GroupEnding{Set({-1, 0}), 1, "worker 1: no such file", false},
      Terminate({-1, 0}));
  add("worker ends while starting", starting, Exited(1, 3),
      GroupEnding{Set({-1, 0}), 1,
                  "worker 1 ended with exit code 3 without being told to",
                  false},
      Terminate({-1, 0}));
  add("worker is killed while starting", starting, Exited(1, 0, SIGKILL),
      GroupStarting{Set({-1, 0}), kAll, Set({1}), Early(1, 1)},
      {Say{kWorkerKilled + "; a successor takes over"}, ScheduleStart{1, 0}});
  add("the coordinator is killed while starting", starting,
      Exited(-1, 0, SIGKILL),
      GroupStarting{Set({0, 1}), Set({-1, 0}), Set({-1}), Early(-1, 1)},
      {Say{"coordinator was killed by signal 9 (Killed); a successor takes "
           "over"},
       ScheduleStart{-1, 0}});
  add("a task's coordinator is killed while starting", starting,
      Exited(-1, 0, SIGKILL),
      GroupEnding{Set({0, 1}), 1, "coordinator was killed by signal 9 (Killed)",
                  false},
      Terminate({0, 1}), kTask);
  add("the ninth while starting is the last",
      GroupStarting{kAll, kAll, {}, Early(1, 8)}, Exited(1, 0, SIGKILL),
      GroupEnding{
          Set({-1, 0}), 1,
          kWorkerKilled + "; 9 processes in a row did not come to serve",
          false},
      Terminate({-1, 0}));
  // A worker that dies while the group serves has a successor.
  const std::vector<GroupEffect> replaced = {
      Say{kWorkerKilled + "; a successor takes over"}, ScheduleStart{1, 0}};
  add("worker dies while serving", serving, Exited(1, 0, SIGKILL),
      GroupServing{Set({-1, 0}), Set({1}), {}}, replaced);
  add("worker dies in the drain", draining, Exited(1, 0, SIGKILL),
      GroupDraining{Set({-1, 0}), Set({1}), {}}, replaced);
  add("worker of a task dies", serving, Exited(1, 0, SIGKILL),
      GroupServing{Set({-1, 0}), Set({1}), {}}, replaced, kTask);
  add("an early death counts", serving, DiedYoung(1),
      GroupServing{Set({-1, 0}), Set({1}), Early(1, 1)}, replaced);
  add("the third waits", GroupServing{kAll, {}, Early(1, 2)}, DiedYoung(1),
      GroupServing{Set({-1, 0}), Set({1}), Early(1, 3)},
      {Say{kWorkerKilled + "; a successor takes over in 100 ms"},
       ScheduleStart{1, 100}});
  add("the eighth waits longer", GroupServing{kAll, {}, Early(1, 7)},
      DiedYoung(1), GroupServing{Set({-1, 0}), Set({1}), Early(1, 8)},
      {Say{kWorkerKilled + "; a successor takes over in 3200 ms"},
       ScheduleStart{1, 3200}});
  const std::vector<GroupEffect> hopeless = {
      Say{kWorkerKilled + "; a successor takes over in 30000 ms"},
      TellTrouble{1,
                  kWorkerKilled +
                      "; 9 processes in a row lasted less than 2000 ms, it is "
                      "tried again every 30 s"},
      ScheduleStart{1, 30000}};
  add("the ninth is told of", GroupServing{kAll, {}, Early(1, 8)}, DiedYoung(1),
      GroupServing{Set({-1, 0}), Set({1}), Early(1, 9)}, hopeless);
  add("so are all later ones", GroupServing{kAll, {}, Early(1, 9)},
      DiedYoung(1), GroupServing{Set({-1, 0}), Set({1}), Early(1, 9)},
      hopeless);
  // What it says of itself counts for more than how it ended.
  add("a lasting failure is told of at once", serving,
      ChildExited{1, 0, SIGKILL, "no such file", kLongMs, true},
      GroupServing{Set({-1, 0}), Set({1}), Early(1, 9)},
      {Say{"worker 1: no such file; a successor takes over in 30000 ms"},
       TellTrouble{1, "worker 1: no such file, it is tried again every 30 s"},
       ScheduleStart{1, 30000}});
  add("a coordinator's may be mended before it is given up", serving,
      ChildExited{-1, 1, 0, "the journal is damaged", 10, true},
      GroupServing{Set({0, 1}), Set({-1}), Early(-1, 1)},
      {Say{"coordinator: the journal is damaged; a successor takes over"},
       ScheduleStart{-1, 0}});
  add("one that stalled was killed for it", serving,
      ChildExited{1, 0, SIGKILL, "", kLongMs, false, true},
      GroupServing{Set({-1, 0}), Set({1}), {}},
      {Say{kWorkerKilled + ", for it made no progress; a successor takes over"},
       ScheduleStart{1, 0}});
  add("in the drain too", GroupDraining{kAll, {}, Early(1, 9)}, DiedYoung(1),
      GroupDraining{Set({-1, 0}), Set({1}), Early(1, 9)}, hopeless);
  add("a late death is forgiven", GroupServing{kAll, {}, Early(1, 8)},
      Exited(1, 0, SIGKILL), GroupServing{Set({-1, 0}), Set({1}), {}},
      replaced);
  add("and forgets the trouble", GroupServing{kAll, {}, Early(1, 9)},
      Exited(1, 0, SIGKILL), GroupServing{Set({-1, 0}), Set({1}), {}},
      {replaced[0], TellTrouble{1, ""}, replaced[1]});
  add("a coordinator's ninth is the last", GroupServing{kAll, {}, Early(-1, 8)},
      DiedYoung(-1),
      GroupEnding{
          Set({0, 1}), 1,
          "coordinator was killed by signal 9 (Killed); 9 processes in a "
          "row lasted less than 2000 ms",
          false},
      Terminate({0, 1}));
  // Starts.
  const GroupServing one_down{Set({-1, 0}), Set({1}), Early(1, 1)};
  const GroupEvent due = StartDue{1};
  add("start while serving", one_down, due, GroupServing{kAll, {}, Early(1, 1)},
      {StartProcess{1}});
  add("start in the drain", GroupDraining{Set({-1, 0}), Set({1}), {}}, due,
      draining, {StartProcess{1}});
  add("start while starting",
      GroupStarting{Set({-1, 0}), kAll, Set({1}), Early(1, 1)}, due,
      GroupStarting{kAll, kAll, {}, Early(1, 1)}, {StartProcess{1}});
  add("start while ending", ending, due, ending);
  add("start at the end", ended, due, ended);
  add("stop with one down", one_down, kStop,
      GroupDraining{Set({-1, 0}), Set({1}), Early(1, 1)},
      {Say{kDrainSaid}, SignalChildren{Set({-1}), SIGTERM},
       SetDeadline{35000}});
  add("even a good exit is unasked", serving, Exited(-1),
      GroupEnding{Set({0, 1}), 1, kCoordinatorDied, false}, Terminate({0, 1}));
  add("the coordinator is killed", serving, Exited(-1, 0, SIGKILL),
      GroupServing{Set({0, 1}), Set({-1}), {}},
      {Say{"coordinator was killed by signal 9 (Killed); a successor takes "
           "over"},
       ScheduleStart{-1, 0}});
  add("the coordinator fails", serving, Exited(-1, 1, 0, "no journal"),
      GroupServing{Set({0, 1}), Set({-1}), {}},
      {Say{"coordinator: no journal; a successor takes over"},
       ScheduleStart{-1, 0}});
  add("the coordinator starts anew", GroupServing{Set({0, 1}), Set({-1}), {}},
      StartDue{-1}, serving, {StartProcess{-1}});
  // It is told when it is ready.
  const GroupDraining headless{Set({0, 1}), Set({-1}), {}};
  add("stop without a coordinator", GroupServing{Set({0, 1}), Set({-1}), {}},
      kStop, headless, {Say{kDrainSaid}, SetDeadline{35000}});
  add("its successor in the drain", headless, StartDue{-1}, draining,
      {StartProcess{-1}});
  add("it is told to drain", draining, ChildReady{-1}, draining, told);
  add("the last one dies", GroupServing{Set({-1}), {}, {}}, Exited(-1),
      GroupEnded{1, kCoordinatorDied});
  add("a task is done", serving, Exited(-1),
      GroupEnding{Set({0, 1}), 0, "", false}, Terminate({0, 1}), kTask);
  add("a task is done early", starting, Exited(-1),
      GroupEnding{Set({0, 1}), 0, "", false}, Terminate({0, 1}), kTask);
  add("a task fails", serving, Exited(-1, 2),
      GroupEnding{Set({0, 1}), 1,
                  "coordinator ended with exit code 2 without being told to",
                  false},
      Terminate({0, 1}), kTask);
  add("a worker of a task is sent home before its coordinator ends", serving,
      Exited(0), GroupDraining{Set({-1, 1}), {}, {}}, {SetDeadline{35000}},
      kTask);
  add("a worker of a server ends unasked", serving, Exited(0),
      GroupServing{Set({-1, 1}), Set({0}), {}},
      {Say{"worker 0 ended with exit code 0 without being told to; a successor "
           "takes over"},
       ScheduleStart{0, 0}});
  add("worker ends in the drain", draining, Exited(0),
      GroupDraining{Set({-1, 1}), {}, {}});
  add("the drain is over", draining, Exited(-1),
      GroupEnding{Set({0, 1}), 0, "", false}, Terminate({0, 1}));
  add("the drain is over, workers before", GroupDraining{Set({-1}), {}, {}},
      Exited(-1), GroupEnded{0, ""});
  const std::string cut = "the drain did not end within 9 ms: 2 requests";
  add("the drain has cut requests", draining, Exited(-1, 3, 0, cut),
      GroupEnding{Set({0, 1}), 3, cut, false}, Terminate({0, 1}));
  add("the coordinator fails in the drain", draining,
      Exited(-1, 1, 0, "broken"), headless,
      {Say{"coordinator: broken; a successor takes over"},
       ScheduleStart{-1, 0}});
  add("the coordinator is killed in the drain", draining,
      Exited(-1, 0, SIGKILL), headless,
      {Say{"coordinator was killed by signal 9 (Killed); a successor takes "
           "over"},
       ScheduleStart{-1, 0}});
  add("a task's coordinator fails at its end", draining,
      Exited(-1, 1, 0, "broken"),
      GroupEnding{Set({0, 1}), 1, "coordinator: broken", false},
      Terminate({0, 1}), kTask);
  add("exit by our signal is no news", ending, Exited(0, 0, SIGTERM),
      GroupEnding{Set({-1, 1}), 1, "why", false});
  add("but what it says is", ending, Exited(0, 1, 0, "disk full"),
      GroupEnding{Set({-1, 1}), 1, "why\nworker 0: disk full", false});
  add("but not what was said before",
      GroupEnding{kAll, 1, "worker 1: disk full", false},
      Exited(0, 1, 0, "disk full"),
      GroupEnding{Set({-1, 1}), 1, "worker 1: disk full", false});
  add("a failure spoils a good end", GroupEnding{kAll, 0, "", false},
      Exited(0, 1, 0, "disk full"),
      GroupEnding{Set({-1, 1}), 1, "worker 0: disk full", false});
  add("the last one ends", GroupEnding{Set({0}), 0, "", false}, Exited(0),
      GroupEnded{0, ""});
  // Signals.
  add("stop while starting", starting, kStop, GroupEnding{kAll, 0, "", true},
      {SignalChildren{kAll, SIGKILL}, Say{"stopped before it was ready"}});
  add("stop while serving", serving, kStop, draining,
      {Say{kDrainSaid}, SignalChildren{Set({-1}), SIGTERM},
       SetDeadline{35000}});
  add("stop a task", serving, kStop, GroupEnding{kAll, 1, "interrupted", true},
      Kill({-1, 0, 1}), kTask);
  add("second stop", draining, kStop, GroupEnding{kAll, 1, kAtOnce, true},
      Kill({-1, 0, 1}));
  add("second stop while ending", ending, kStop, killed, Kill({-1, 0, 1}));
  add("third stop", killed, kStop, killed);
  add("stop at the end", ended, kStop, ended);
  // SIGTERM of somebody else to the coordinator: to it alone, or to everybody.
  GroupServing strayed = serving;
  strayed.stray_stop = true;
  add("stray stop while starting", starting, kStray, starting);
  add("stray stop while serving", serving, kStray, strayed, {SetDeadline{300}});
  add("a second one", strayed, kStray, strayed);
  add("it was for the coordinator alone", strayed, kDeadline, serving,
      {Say{"somebody else told the coordinator to end: it is replaced"},
       SignalChildren{Set({-1}), SIGKILL}});
  add("it was for everybody", strayed, kStop, draining,
      {Say{kDrainSaid}, SignalChildren{Set({-1}), SIGTERM},
       SetDeadline{35000}});
  add(
      "a worker dies meanwhile", strayed, Exited(1, 0, SIGKILL),
      [&] {
        GroupServing next{Set({-1, 0}), Set({1}), {}};
        next.stray_stop = true;
        return next;
      }(),
      replaced);
  add("the coordinator dies of itself meanwhile", strayed,
      Exited(-1, 0, SIGKILL), GroupServing{Set({0, 1}), Set({-1}), {}},
      {Say{"coordinator was killed by signal 9 (Killed); a successor takes "
           "over"},
       ScheduleStart{-1, 0}});
  add("stray stop of one that has died",
      GroupServing{Set({0, 1}), Set({-1}), {}}, kStray,
      GroupServing{Set({0, 1}), Set({-1}), {}});
  // Ours may have gone into it.
  add("stray stop while draining", draining, kStray, draining, told);
  add("stray stop in a drain without a coordinator", headless, kStray,
      headless);
  add("stray stop while ending", ending, kStray, ending, told);
  add("stray stop of a killed one", killed, kStray, killed);
  add("stray stop at the end", ended, kStray, ended);
  // Deadlines.
  add("late deadline while starting", starting, kDeadline, starting);
  add("late deadline while serving", serving, kDeadline, serving);
  add("the drain takes too long", draining, kDeadline,
      GroupEnding{kAll, 3,
                  "the drain did not end within 35000 ms: what was in flight "
                  "was cut",
                  true},
      Kill({-1, 0, 1}));
  add("the end takes too long", ending, kDeadline, killed, Kill({-1, 0, 1}));
  add("killed and still there", killed, kDeadline, killed);
  add("deadline at the end", ended, kDeadline, ended);
  return rows;
}

TEST(Supervision, Table) {
  for (const Row& row : Table()) {
    SCOPED_TRACE(row.name);
    const absl::StatusOr<GroupTransition> transition =
        Supervise(row.policy, row.state, row.event);
    ASSERT_THAT(transition, IsOk());
    EXPECT_TRUE(transition->next == row.next);
    EXPECT_TRUE(transition->effects == row.effects);
  }
}

TEST(Supervision, TableNamesEveryStateWithEveryEvent) {
  std::set<std::pair<size_t, size_t>> named;
  for (const Row& row : Table()) {
    named.emplace(row.state.index(), row.event.index());
  }
  for (size_t state = 0; state < std::variant_size_v<GroupState>; ++state) {
    for (size_t event = 0; event < std::variant_size_v<GroupEvent>; ++event) {
      const bool impossible = state == 4 && event == 1;  // nobody is left
      EXPECT_EQ(named.contains({state, event}), !impossible)
          << state << " " << event;
    }
  }
}

TEST(Supervision, ExitOfNobodyIsImpossible) {
  for (const GroupState& state :
       {GroupState(GroupServing{Set({-1, 0}), {}, {}}),
        GroupState(GroupEnded{0, ""}),
        GroupState(GroupEnding{Set({0}), 0, "", false})}) {
    EXPECT_THAT(
        Supervise(kServe, state, Exited(1)),
        StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr("worker 1")));
  }
}

TEST(Supervision, StartOfWhoIsNotDownIsImpossible) {
  EXPECT_THAT(
      Supervise(kServe, GroupServing{kAll, {}, {}}, StartDue{1}),
      StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr("worker 1")));
}

// A walk over random events, with children that obey signals or do not.
TEST(Supervision, EveryWalkEndsAndKillsWhoDoesNotObey) {
  for (uint32_t seed = 1; seed <= 2000; ++seed) {
    SCOPED_TRACE(seed);
    std::mt19937 random(seed);
    const auto pick = [&](int n) {
      return static_cast<int>(random() % static_cast<uint32_t>(n));
    };
    const int num_workers = 1 + pick(kMaxRanks);
    const SupervisionPolicy policy{.one_shot = pick(4) == 0};
    ChildSet alive = ChildSet::Group(num_workers);
    std::set<ChildId> told, killed, down;
    GroupState state = GroupStarting{alive, alive, {}, {}};
    bool deadline = false;
    bool first_failure = false;
    for (int steps = 0; !std::holds_alternative<GroupEnded>(state); ++steps) {
      ASSERT_LT(steps, 1000);
      GroupEvent event = StopRequested{};
      if (pick(4) == 0) event = StrayStop{};
      const std::vector<ChildId> members = alive.members();
      const int kind = pick(10);
      if (!killed.empty() && !members.empty()) {
        event = ChildExited{members[0], 0, SIGKILL, ""};
      } else if (kind < 3 && !members.empty()) {
        event = ChildReady{members[static_cast<size_t>(
            pick(static_cast<int>(members.size())))]};
      } else if (kind < 5 && !members.empty()) {
        const ChildId child = members[static_cast<size_t>(
            pick(static_cast<int>(members.size())))];
        const bool dies = pick(3) == 0;
        if (!dies && !told.contains(child)) continue;
        event = ChildExited{child, 0, dies ? SIGSEGV : 0, "",
                            pick(4) == 0 ? kLongMs : 0};
        // That of a server is replaced.
        first_failure =
            first_failure || (dies && told.empty() &&
                              child == kCoordinatorChild && policy.one_shot);
      } else if (kind >= 8) {
        if (down.empty()) continue;
        event = StartDue{*down.begin()};
        down.erase(down.begin());
      } else if (kind < 7) {
        if (!deadline) continue;
        event = DeadlinePassed{};
        deadline = false;
      }
      const absl::StatusOr<GroupTransition> transition =
          Supervise(policy, state, event);
      ASSERT_THAT(transition, IsOk());
      if (const auto* exit = std::get_if<ChildExited>(&event)) {
        alive = alive.Without(exit->child);
      }
      state = transition->next;
      for (const GroupEffect& effect : transition->effects) {
        if (const auto* signal = std::get_if<SignalChildren>(&effect)) {
          for (ChildId child : signal->children.members()) {
            // Only the living are signalled.
            EXPECT_TRUE(alive.contains(child));
            (signal->signal == SIGKILL ? killed : told).insert(child);
          }
        }
        if (std::holds_alternative<SetDeadline>(effect)) deadline = true;
        if (const auto* start = std::get_if<ScheduleStart>(&effect)) {
          EXPECT_FALSE(alive.contains(start->child));
          down.insert(start->child);
        }
        if (const auto* start = std::get_if<StartProcess>(&effect)) {
          EXPECT_FALSE(alive.contains(start->child));
          alive = alive.With(start->child);
        }
      }
      // Whoever waits for an end has a deadline, or has killed.
      if (std::holds_alternative<GroupDraining>(state)) {
        EXPECT_TRUE(deadline);
      }
      if (const auto* ending = std::get_if<GroupEnding>(&state)) {
        EXPECT_TRUE(ending->killed || deadline);
        EXPECT_TRUE(ending->alive == alive);
        EXPECT_EQ(ending->exit_code != 0, !ending->message.empty());
      }
    }
    EXPECT_TRUE(alive.empty());
    const GroupEnded& ended = std::get<GroupEnded>(state);
    if (first_failure) {
      EXPECT_EQ(ended.exit_code, 1);
    }
    EXPECT_EQ(ended.exit_code != 0, !ended.message.empty());
  }
}

TEST(ChildSet, HoldsTheCoordinatorAndTheWorkers) {
  const ChildSet set = ChildSet::Group(2);
  EXPECT_EQ(set.members(), (std::vector<ChildId>{-1, 0, 1}));
  EXPECT_TRUE(set.contains(kCoordinatorChild));
  EXPECT_FALSE(set.contains(2));
  EXPECT_TRUE(set.Without(-1).Without(0).Without(1).empty());
  EXPECT_EQ(ChildName(kCoordinatorChild), "coordinator");
  EXPECT_EQ(ChildName(3), "worker 3");
}

}  // namespace
}  // namespace moebius
