// Rounds of recovery: the table, and a random walk in which every group that
// has its workers comes to run again.
#include "coordinator/decisions/membership.h"

#include <algorithm>
#include <optional>
#include <random>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "gtest/gtest.h"
#include "tests/status_matchers.h"

namespace moebius {
namespace {

constexpr int kRanks = 3;
constexpr int kMaxAsked = 2;
const RankSet kAll = RankSet::All(kRanks);

struct Row {
  std::string name;
  MembershipState state;
  MembershipEvent event;
  MembershipState next;
  std::vector<MembershipEffect> effects;
};

std::vector<Row> Table() {
  const Gathering gathering{RankSet::Of(1), 4};
  const Halting halting{kAll, 5, 1};
  const Halting last{RankSet::Of(2), 5, 1};
  const Loading loading{RankSet::Of(0).with(2), 5};
  const Running running{5};
  const auto begin = [](uint64_t round) {
    return std::pair<MembershipState, std::vector<MembershipEffect>>(
        Halting{kAll, round, 1, {}}, {SendHalt{round, kAll}});
  };
  const auto lose = [](Rank rank, uint64_t round) {
    return std::pair<MembershipState, std::vector<MembershipEffect>>(
        Gathering{RankSet::Of(rank), round},
        {ReplaceWorkers{RankSet::Of(rank)}});
  };
  return {
      // Gathering
      {"the last one joins", gathering, WorkerJoined{1}, begin(5).first,
       begin(5).second},
      {"others are missing",
       Gathering{kAll, 0},
       WorkerJoined{1},
       Gathering{kAll.without(1), 0},
       {}},
      {"one that was there joins anew",
       Gathering{RankSet::Of(1), 4},
       WorkerJoined{0},
       gathering,
       {}},
      {"another is lost",
       gathering,
       WorkerLost{0},
       Gathering{RankSet::Of(0).with(1), 4},
       {ReplaceWorkers{RankSet::Of(0)}}},
      {"the same is lost", gathering, WorkerLost{1}, gathering, {}},
      {"an interruption finds it halted",
       gathering,
       GroupInterrupted{},
       gathering,
       {}},
      {"a late answer", gathering, WorkerHalted{0, 4}, gathering, {}},
      {"a late timer", gathering, RoundExpired{4}, gathering, {}},
      {"late weights", gathering, WorkerLoaded{0, 4}, gathering, {}},
      // Halting
      {"one halts",
       halting,
       WorkerHalted{0, 5},
       Halting{kAll.without(0), 5, 1},
       {}},
      {"the last one halts",
       last,
       WorkerHalted{2, 5},
       Running{5},
       {ResumeGroup{5}}},
      {"one without weights halts",
       halting,
       WorkerHalted{0, 5, true},
       Halting{kAll.without(0), 5, 1, RankSet::Of(0)},
       {}},
      {"the last one halts, and some have no weights",
       Halting{RankSet::Of(2), 5, 1, RankSet::Of(0)},
       WorkerHalted{2, 5, true},
       loading,
       {SendLoad{5, RankSet::Of(0).with(2)}}},
      {"weights of an earlier round", last, WorkerLoaded{2, 4}, last, {}},
      {"an answer to an earlier round", last, WorkerHalted{2, 4}, last, {}},
      {"a successor joins: all over", last, WorkerJoined{0}, begin(6).first,
       begin(6).second},
      {"one is lost", halting, WorkerLost{1}, lose(1, 5).first,
       lose(1, 5).second},
      {"an interruption is being seen to",
       halting,
       GroupInterrupted{},
       halting,
       {}},
      {"no answer: ask again",
       last,
       RoundExpired{5},
       Halting{RankSet::Of(2), 5, 2},
       {SendHalt{5, RankSet::Of(2)}}},
      {"no answer again: replace", Halting{RankSet::Of(2), 5, 2},
       RoundExpired{5}, lose(2, 5).first, lose(2, 5).second},
      {"an old timer", last, RoundExpired{4}, last, {}},
      // Loading
      {"one has its weights",
       loading,
       WorkerLoaded{0, 5},
       Loading{RankSet::Of(2), 5},
       {}},
      {"all have their weights",
       Loading{RankSet::Of(2), 5},
       WorkerLoaded{2, 5},
       Running{5},
       {ResumeGroup{5}}},
      {"weights of an earlier round while loading",
       loading,
       WorkerLoaded{0, 4},
       loading,
       {}},
      {"a successor while others load", loading, WorkerJoined{1},
       begin(6).first, begin(6).second},
      {"one is lost while loading", loading, WorkerLost{2}, lose(2, 5).first,
       lose(2, 5).second},
      {"an interruption while loading", loading, GroupInterrupted{},
       begin(6).first, begin(6).second},
      {"a halt twice while loading", loading, WorkerHalted{1, 5}, loading, {}},
      {"nobody loads for ever",
       loading,
       RoundExpired{5},
       Gathering{RankSet::Of(0).with(2), 5},
       {ReplaceWorkers{RankSet::Of(0).with(2)}}},
      {"an old timer while loading", loading, RoundExpired{4}, loading, {}},
      // Running
      {"a successor while running", running, WorkerJoined{1}, begin(6).first,
       begin(6).second},
      {"one is lost while running", running, WorkerLost{2}, lose(2, 5).first,
       lose(2, 5).second},
      {"an interruption", running, GroupInterrupted{}, begin(6).first,
       begin(6).second},
      {"weights twice", running, WorkerLoaded{0, 5}, running, {}},
      {"an answer twice", running, WorkerHalted{0, 5}, running, {}},
      {"a timer of a round that is over",
       running,
       RoundExpired{5},
       running,
       {}},
  };
}

TEST(Membership, Table) {
  for (const Row& row : Table()) {
    SCOPED_TRACE(row.name);
    const auto transition = Next(row.state, row.event, kRanks, kMaxAsked);
    ASSERT_THAT(transition, IsOk());
    EXPECT_TRUE(transition->next == row.next);
    EXPECT_TRUE(transition->effects == row.effects);
  }
}

TEST(Membership, TableNamesEveryStateWithEveryEvent) {
  std::set<std::pair<size_t, size_t>> named;
  for (const Row& row : Table()) {
    named.emplace(row.state.index(), row.event.index());
  }
  EXPECT_EQ(named.size(), std::variant_size_v<MembershipState> *
                              std::variant_size_v<MembershipEvent>);
}

TEST(Membership, StrangersAreRefused) {
  for (const MembershipState& state :
       {MembershipState(Gathering{kAll, 0}), MembershipState(Halting{kAll, 1}),
        MembershipState(Loading{kAll, 1}), MembershipState(Running{1})}) {
    for (const MembershipEvent& event :
         {MembershipEvent(WorkerJoined{kRanks}),
          MembershipEvent(WorkerLost{-1}),
          MembershipEvent(WorkerHalted{kRanks, 1}),
          MembershipEvent(WorkerLoaded{-1, 1})}) {
      EXPECT_THAT(Next(state, event, kRanks, kMaxAsked),
                  StatusIs(absl::StatusCode::kInvalidArgument));
    }
  }
}

// Workers that die, are replaced, and lose or repeat messages. The group
// resumes only when all workers that are there now have halted in that round,
// and it does resume once the trouble ends.
TEST(Membership, EveryWalkResumesOnceTheTroubleEnds) {
  for (uint32_t seed = 1; seed <= 3000; ++seed) {
    SCOPED_TRACE(seed);
    std::mt19937 random(seed);
    const auto below = [&](int n) {
      return static_cast<int>(random() % static_cast<uint32_t>(n));
    };
    const int ranks = 1 + below(kMaxRanks);
    struct Worker {
      bool alive = false;
      bool joined = false;           // in the coordinator's eyes
      uint64_t halted_in = 0;        // round
      bool loaded = false;           // its memory outlives it, as a rule
      std::optional<uint64_t> load;  // a LOAD on its way
      std::vector<uint64_t> inbox;   // HALTs on their way
    };
    std::vector<Worker> workers(ranks);
    MembershipState state = Gathering{RankSet::All(ranks), 0};
    std::optional<uint64_t> timer;
    int resumes = 0;
    uint64_t last_round = 0;
    // Effects in turn; a HALT that finds nobody raises WorkerLost.
    const auto raise = [&](MembershipEvent first) {
      std::vector<MembershipEvent> events = {first};
      for (size_t i = 0; i < events.size(); ++i) {
        ASSERT_LT(i, 100u);
        const auto transition = Next(state, events[i], ranks, kMaxAsked);
        ASSERT_THAT(transition, IsOk());
        state = transition->next;
        for (const MembershipEffect& effect : transition->effects) {
          if (const auto* halt = std::get_if<SendHalt>(&effect)) {
            ASSERT_GE(halt->round, last_round);
            last_round = halt->round;
            timer = halt->round;
            for (Rank r = 0; r < ranks; ++r) {
              if (!halt->ranks.contains(r)) continue;
              if (workers[r].alive && workers[r].joined) {
                workers[r].inbox.push_back(halt->round);
              } else {
                events.push_back(WorkerLost{r});
              }
            }
          } else if (const auto* gone = std::get_if<ReplaceWorkers>(&effect)) {
            for (Rank r = 0; r < ranks; ++r) {
              if (gone->ranks.contains(r)) {
                workers[r] = Worker{.loaded = workers[r].loaded};
              }
            }
          } else if (const auto* load = std::get_if<SendLoad>(&effect)) {
            timer = load->round;
            for (Rank r = 0; r < ranks; ++r) {
              if (!load->ranks.contains(r)) continue;
              ASSERT_EQ(workers[r].alive && workers[r].loaded, false);
              if (workers[r].alive) workers[r].load = load->round;
            }
          } else {
            ++resumes;
            const uint64_t round = std::get<ResumeGroup>(effect).round;
            for (const Worker& worker : workers) {
              // One may have died since, but none goes on by itself.
              ASSERT_TRUE(!worker.alive || worker.halted_in == round);
              ASSERT_TRUE(!worker.alive || worker.loaded);
            }
          }
        }
      }
    };
    // A successor finds the memory, or does not.
    const auto join = [&](Rank r, bool memory) {
      workers[r] = Worker{
          .alive = true, .joined = true, .loaded = workers[r].loaded && memory};
      raise(WorkerJoined{r});
    };
    const auto load = [&](Rank r) {
      const uint64_t round = *std::exchange(workers[r].load, std::nullopt);
      if (round != workers[r].halted_in) return;  // an order of another round
      workers[r].loaded = true;
      raise(WorkerLoaded{r, round});
    };
    const auto halt = [&](Rank r, uint64_t round) {
      workers[r].halted_in = std::max(workers[r].halted_in, round);
      raise(WorkerHalted{r, round, !workers[r].loaded});
    };
    for (int turn = 0; turn < 200; ++turn) {
      const bool trouble = turn < 150;
      const Rank r = below(ranks);
      Worker& worker = workers[r];
      const int kind = trouble ? below(9) : below(4);
      if (kind == 0 && !worker.joined) {
        ASSERT_NO_FATAL_FAILURE(join(r, below(4) > 0));
      } else if (worker.alive && worker.load.has_value() && below(2) == 0) {
        ASSERT_NO_FATAL_FAILURE(load(r));
      } else if (kind <= 2 && worker.alive && !worker.inbox.empty()) {
        const uint64_t round = worker.inbox.front();
        if (!trouble || below(3) > 0) worker.inbox.erase(worker.inbox.begin());
        if (trouble && below(4) == 0) continue;  // lost
        ASSERT_NO_FATAL_FAILURE(halt(r, round));
      } else if (kind == 3 && timer.has_value()) {
        ASSERT_NO_FATAL_FAILURE(raise(RoundExpired{*timer}));
      } else if (kind == 4 && worker.alive) {
        worker.alive = false;  // and nobody knows yet
      } else if (kind == 5) {
        ASSERT_NO_FATAL_FAILURE(raise(GroupInterrupted{}));
      } else if (kind == 6 && worker.joined && !worker.alive) {
        ASSERT_NO_FATAL_FAILURE(raise(WorkerLost{r}));
      } else if (kind == 7 && !worker.alive) {
        ASSERT_NO_FATAL_FAILURE(join(r, below(4) > 0));
      }
    }
    // A worker that is missing joins, one that is asked answers.
    for (int turn = 0; turn < 100 * ranks; ++turn) {
      const Rank r = turn % ranks;
      if (!workers[r].alive) {
        ASSERT_NO_FATAL_FAILURE(join(r, true));
      } else if (workers[r].load.has_value()) {
        ASSERT_NO_FATAL_FAILURE(load(r));
      } else if (!workers[r].inbox.empty()) {
        const uint64_t round = workers[r].inbox.back();
        workers[r].inbox.clear();
        ASSERT_NO_FATAL_FAILURE(halt(r, round));
      } else if (std::holds_alternative<Halting>(state)) {
        ASSERT_NO_FATAL_FAILURE(raise(RoundExpired{last_round}));
      }
    }
    EXPECT_TRUE(std::holds_alternative<Running>(state));
    EXPECT_GE(resumes, 1);
  }
}

}  // namespace
}  // namespace moebius
