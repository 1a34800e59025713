#include "coordinator/decisions/layout_machine.h"

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
constexpr Layout kEp = ExpertParallel();
const Layout kTp = TensorParallel(kRanks);
constexpr StepId kNext{40};

// The three states of the table, all with epoch 5 as the one of interest.
const Steady kSteady{kEp, Epoch{5}};
const Preparing kPreparing{kEp, kTp, Epoch{5}, RankSet::All(kRanks)};
const Preparing kLastMissing{kEp, kTp, Epoch{5},
                             RankSet::All(kRanks).without(0).without(1)};
const Committing kCommitting{kEp, kTp, Epoch{5}, StepId{17},
                             RankSet::All(kRanks)};
const Committing kLastSwitching{kEp, kTp, Epoch{5}, StepId{17},
                                RankSet::All(kRanks).without(0).without(1)};

enum class Answer { kTransition, kUnchanged, kImpossible, kInvalid };

struct Row {
  std::string name;
  LayoutState state;
  LayoutEvent event;
  Answer answer = Answer::kUnchanged;
  LayoutState next = {};
  std::vector<LayoutEffect> effects = {};
};

constexpr Epoch kOld{4}, kNow{5}, kLater{6};

std::vector<Row> Table() {
  using A = Answer;
  const RankSet all = RankSet::All(kRanks);
  std::vector<Row> rows = {
      // Steady
      {"a request for the present layout has nothing to do",
       kSteady,
       Requested{kEp},
       A::kTransition,
       kSteady,
       {NothingToDo{kEp}}},
      {"a request for a layout the group lacks is refused", kSteady,
       Requested{Layout{2}}, A::kInvalid},
      {"a request starts the next epoch",
       kSteady,
       Requested{kTp},
       A::kTransition,
       Preparing{kEp, kTp, Epoch{6}, all},
       {SendPrepare{Epoch{6}, kTp}}},
      {"a late refused plan", kSteady, PlanRefused{kNow, "x"}},
      {"a refused plan of the future", kSteady, PlanRefused{kLater, "x"},
       A::kImpossible},
      {"a late PREPARED", kSteady, PreparedBy{1, kNow}},
      {"a PREPARED of the future", kSteady, PreparedBy{1, kLater},
       A::kImpossible},
      {"a PREPARED of a stranger", kSteady, PreparedBy{kRanks, kNow},
       A::kInvalid},
      {"a late refusal", kSteady, RefusedBy{1, kNow, "x"}},
      {"a refusal of the future", kSteady, RefusedBy{1, kLater, "x"},
       A::kImpossible},
      {"a refusal of a stranger", kSteady, RefusedBy{-1, kNow, "x"},
       A::kInvalid},
      {"a late prepare timer", kSteady, PrepareExpired{kNow}},
      {"a prepare timer of the future", kSteady, PrepareExpired{kLater},
       A::kImpossible},
      {"a repeated SWITCHED", kSteady, SwitchedBy{2, kNow}},
      {"a SWITCHED of the future", kSteady, SwitchedBy{2, kLater},
       A::kImpossible},
      {"a SWITCHED of a stranger", kSteady, SwitchedBy{kRanks, kNow},
       A::kInvalid},
      {"a late switch timer", kSteady, SwitchExpired{kNow}},
      {"a switch timer of the future", kSteady, SwitchExpired{kLater},
       A::kImpossible},
      {"a halt in steady state changes nothing", kSteady, GroupHalts{}},

      // Preparing
      {"a request while preparing",
       kPreparing,
       Requested{kEp},
       A::kTransition,
       kPreparing,
       {Busy{kNow}}},
      {"no plan: steady again, nothing to abort",
       kPreparing,
       PlanRefused{kNow, "full"},
       A::kTransition,
       Steady{kEp, kNow},
       {Refused{kNow, "full"}}},
      {"no plan after an answer", kLastMissing, PlanRefused{kNow, "full"},
       A::kImpossible},
      {"an old refused plan", kPreparing, PlanRefused{kOld, "x"}},
      {"a refused plan of the future", kPreparing, PlanRefused{kLater, "x"},
       A::kImpossible},
      {"one PREPARED of three",
       kPreparing,
       PreparedBy{1, kNow},
       A::kTransition,
       Preparing{kEp, kTp, kNow, all.without(1)},
       {}},
      {"a repeated PREPARED", kLastMissing, PreparedBy{1, kNow}},
      {"the last PREPARED: log, then commit at the next step",
       kLastMissing,
       PreparedBy{2, kNow},
       A::kTransition,
       Committing{kEp, kTp, kNow, kNext, all},
       {LogDecision{kNow, kTp, kNext}, SendCommit{kNow, kNext}}},
      {"an old PREPARED", kLastMissing, PreparedBy{2, kOld}},
      {"a PREPARED of the future", kLastMissing, PreparedBy{2, kLater},
       A::kImpossible},
      {"a PREPARED of a stranger", kLastMissing, PreparedBy{kRanks, kNow},
       A::kInvalid},
      {"a refusal ends the attempt",
       kLastMissing,
       RefusedBy{2, kNow, "no room"},
       A::kTransition,
       Steady{kEp, kNow},
       {SendAbort{kNow}, Refused{kNow, "rank 2: no room"}}},
      {"a refusal after a yes", kLastMissing, RefusedBy{1, kNow, "x"},
       A::kImpossible},
      {"an old refusal", kPreparing, RefusedBy{2, kOld, "x"}},
      {"a refusal of the future", kPreparing, RefusedBy{2, kLater, "x"},
       A::kImpossible},
      {"a refusal of a stranger", kPreparing, RefusedBy{kRanks, kNow, "x"},
       A::kInvalid},
      {"expiry names the silent ranks",
       kLastMissing,
       PrepareExpired{kNow},
       A::kTransition,
       Steady{kEp, kNow},
       {SendAbort{kNow},
        Refused{kNow, "no answer to PREPARE in time from rank 2"}}},
      {"an old timer", kPreparing, PrepareExpired{kOld}},
      {"a timer of the future", kPreparing, PrepareExpired{kLater},
       A::kImpossible},
      {"SWITCHED before the commit", kPreparing, SwitchedBy{0, kNow},
       A::kImpossible},
      {"an old SWITCHED", kPreparing, SwitchedBy{0, kOld}},
      {"a SWITCHED of a stranger", kPreparing, SwitchedBy{kRanks, kOld},
       A::kInvalid},
      {"a switch timer before the commit", kPreparing, SwitchExpired{kNow},
       A::kImpossible},
      {"an old switch timer", kPreparing, SwitchExpired{kOld}},
      {"a halt while preparing ends the attempt",
       kLastMissing,
       GroupHalts{},
       A::kTransition,
       Steady{kEp, kNow},
       {Refused{kNow, "the group was halted while it prepared"}}},

      // Committing
      {"a request while committing",
       kCommitting,
       Requested{kEp},
       A::kTransition,
       kCommitting,
       {Busy{kNow}}},
      {"a refused plan after the commit", kCommitting, PlanRefused{kNow, "x"},
       A::kImpossible},
      {"an old refused plan", kCommitting, PlanRefused{kOld, "x"}},
      {"a repeated PREPARED after the commit", kCommitting,
       PreparedBy{1, kNow}},
      {"a PREPARED of the future", kCommitting, PreparedBy{1, kLater},
       A::kImpossible},
      {"a PREPARED of a stranger", kCommitting, PreparedBy{kRanks, kNow},
       A::kInvalid},
      {"a refusal after the commit changes nothing", kCommitting,
       RefusedBy{1, kNow, "x"}, A::kImpossible},
      {"an old refusal", kCommitting, RefusedBy{1, kOld, "x"}},
      {"a refusal of a stranger", kCommitting, RefusedBy{kRanks, kNow, "x"},
       A::kInvalid},
      {"expiry after the commit rolls forward", kCommitting,
       PrepareExpired{kNow}},
      {"a prepare timer of the future", kCommitting, PrepareExpired{kLater},
       A::kImpossible},
      {"one SWITCHED of three",
       kCommitting,
       SwitchedBy{2, kNow},
       A::kTransition,
       Committing{kEp, kTp, kNow, StepId{17}, all.without(2)},
       {}},
      {"a repeated SWITCHED", kLastSwitching, SwitchedBy{1, kNow}},
      {"the last SWITCHED",
       kLastSwitching,
       SwitchedBy{2, kNow},
       A::kTransition,
       Steady{kTp, kNow},
       {Done{kNow, kTp}}},
      {"an old SWITCHED completes nothing", kLastSwitching,
       SwitchedBy{2, kOld}},
      {"a later epoch's SWITCHED completes nothing", kLastSwitching,
       SwitchedBy{2, kLater}, A::kImpossible},
      {"a SWITCHED of a stranger", kLastSwitching, SwitchedBy{kRanks, kNow},
       A::kInvalid},
      {"a slow commit is reported, not undone",
       kLastSwitching,
       SwitchExpired{kNow},
       A::kTransition,
       kLastSwitching,
       {ReportStalled{kNow, all.without(0).without(1)}}},
      {"an old switch timer", kCommitting, SwitchExpired{kOld}},
      {"a switch timer of the future", kCommitting, SwitchExpired{kLater},
       A::kImpossible},
      {"a halt after the commit asks everyone again",
       kLastSwitching,
       GroupHalts{},
       A::kTransition,
       kCommitting,
       {}},
  };
  for (Row& row : rows) {
    if (row.answer == A::kUnchanged) {
      row.answer = A::kTransition;
      row.next = row.state;
    }
  }
  return rows;
}

TEST(LayoutMachine, DoesWhatTheTableSays) {
  for (const Row& row : Table()) {
    SCOPED_TRACE(row.name);
    const auto result = Next(row.state, row.event, kNext, kRanks);
    switch (row.answer) {
      case Answer::kImpossible:
        EXPECT_THAT(result, StatusIs(absl::StatusCode::kFailedPrecondition));
        break;
      case Answer::kInvalid:
        EXPECT_THAT(result, StatusIs(absl::StatusCode::kInvalidArgument));
        break;
      case Answer::kTransition:
      case Answer::kUnchanged:
        ASSERT_THAT(result, IsOk());
        EXPECT_TRUE(result->next == row.next);
        EXPECT_TRUE(result->effects == row.effects);
        break;
    }
  }
}

TEST(LayoutMachine, TableNamesEveryStateAndEvent) {
  std::set<std::pair<size_t, size_t>> named;
  for (const Row& row : Table()) {
    named.insert({row.state.index(), row.event.index()});
  }
  for (size_t s = 0; s < std::variant_size_v<LayoutState>; ++s) {
    for (size_t e = 0; e < std::variant_size_v<LayoutEvent>; ++e) {
      EXPECT_TRUE(named.contains({s, e})) << "state " << s << ", event " << e;
    }
  }
}

TEST(LayoutMachine, LayoutOfStepsFollowsTheDecision) {
  EXPECT_EQ(LayoutOf(kSteady), kEp);
  EXPECT_EQ(LayoutOf(kPreparing), kEp);
  EXPECT_EQ(LayoutOf(kCommitting), kTp);
}

// ---- random walk -----------------------------------------------------------

// A network that loses nothing of the present but delivers anything of the
// past again, at any time, and lies about epochs; beside it a model of what
// must hold, kept by other means than the machine's.
class World {
 public:
  explicit World(uint32_t seed)
      : random_(seed), ranks_(2 + static_cast<int>(random_() % 7)) {
    state_ = Steady{kEp, Epoch{0}};
  }

  void Run(int turns) {
    for (int i = 0; i < turns; ++i) {
      next_unissued_.value += random_() % 3;
      ASSERT_NO_FATAL_FAILURE(Deliver(Choose()));
    }
  }
  int commits() const { return static_cast<int>(logged_.size()); }
  int refusals() const { return refusals_; }

 private:
  Rank AnyRank() { return static_cast<Rank>(random_() % ranks_); }

  LayoutEvent Choose() {
    if (!past_.empty() && random_() % 3 == 0) {
      return past_[random_() % past_.size()];  // late, or once more
    }
    const Epoch now{epoch_};
    const Epoch foreign{random_() % (epoch_ + 3)};
    switch (random_() % 16) {
      case 0:
        return PlanRefused{foreign, "r"};
      case 1:
        return RefusedBy{AnyRank(), foreign, "r"};
      case 2:
        return PrepareExpired{foreign};
      case 3:
        return SwitchExpired{foreign};
      case 4:
        return SwitchedBy{AnyRank(), foreign};
      case 5:
        return PreparedBy{AnyRank(), foreign};
      case 6:
        return random_() % 8 ? LayoutEvent(PreparedBy{AnyRank(), now})
                             : LayoutEvent(GroupHalts{});
      case 7:
      case 8:
      case 9:
        return PreparedBy{AnyRank(), now};
      case 10:
      case 11:
      case 12:
        return SwitchedBy{AnyRank(), now};
      default:
        return Requested{random_() % 2 ? kEp : TensorParallel(ranks_)};
    }
  }

  // What the event adds to our own books, for the attempt under way.
  void Note(const LayoutEvent& event) {
    if (const auto* e = std::get_if<PreparedBy>(&event)) {
      if (e->epoch.value == epoch_) prepared_.insert(e->rank);
    } else if (const auto* e = std::get_if<SwitchedBy>(&event)) {
      if (e->epoch.value == epoch_) switched_.insert(e->rank);
    } else if (std::holds_alternative<GroupHalts>(event)) {
      switched_.clear();
    }
  }

  void Deliver(const LayoutEvent& event) {
    const auto result = Next(state_, event, next_unissued_, ranks_);
    const auto again = Next(state_, event, next_unissued_, ranks_);
    ASSERT_EQ(result.ok(), again.ok());
    if (!result.ok()) {
      ASSERT_THAT(result, StatusIs(absl::StatusCode::kFailedPrecondition));
      return;  // an answer to what was not asked; the state stays
    }
    ASSERT_TRUE(result->next == again->next);
    ASSERT_TRUE(result->effects == again->effects);
    past_.push_back(event);
    Note(event);
    const LayoutState before = state_;
    state_ = result->next;
    bool logged_now = false;
    for (const LayoutEffect& effect : result->effects) {
      if (const auto* p = std::get_if<SendPrepare>(&effect)) {
        ASSERT_EQ(p->epoch.value, epoch_ + 1) << "an epoch used twice";
        epoch_ = p->epoch.value;
        target_ = p->target;
        open_ = true;
        prepared_.clear();
        switched_.clear();
      } else if (const auto* l = std::get_if<LogDecision>(&effect)) {
        ASSERT_EQ(l->epoch.value, epoch_);
        ASSERT_TRUE(open_) << "a decision on an attempt that was over";
        ASSERT_EQ(prepared_.size(), size_t(ranks_))
            << "committed before all were prepared";
        ASSERT_TRUE(logged_.insert(epoch_).second);
        ASSERT_EQ(l->boundary, next_unissued_);
        logged_now = true;
      } else if (const auto* c = std::get_if<SendCommit>(&effect)) {
        ASSERT_TRUE(logged_now) << "COMMIT before the log";
        ASSERT_EQ(c->boundary, next_unissued_);
      } else if (const auto* a = std::get_if<SendAbort>(&effect)) {
        ASSERT_FALSE(logged_.contains(a->epoch.value))
            << "a logged decision was reversed";
      } else if (const auto* r = std::get_if<Refused>(&effect)) {
        ASSERT_TRUE(open_);
        ASSERT_FALSE(logged_.contains(r->epoch.value));
        open_ = false;
        ++refusals_;
      } else if (const auto* d = std::get_if<Done>(&effect)) {
        ASSERT_TRUE(open_);
        ASSERT_TRUE(logged_.contains(d->epoch.value));
        ASSERT_EQ(switched_.size(), size_t(ranks_))
            << "done before all had switched";
        ASSERT_EQ(d->layout, target_);
        layout_ = target_;
        open_ = false;
      }
    }
    if (const auto* steady = std::get_if<Steady>(&state_)) {
      ASSERT_EQ(steady->layout, layout_);
      ASSERT_EQ(steady->proposed.value, epoch_);
      ASSERT_FALSE(open_);
    } else {
      ASSERT_TRUE(open_);
    }
    // A decision is final: from Committing only its own completion leads out.
    if (std::holds_alternative<Committing>(before) &&
        !std::holds_alternative<Committing>(state_)) {
      ASSERT_EQ(std::get<Steady>(state_).layout,
                std::get<Committing>(before).target);
    }
  }

  std::mt19937 random_;
  int ranks_;
  LayoutState state_;
  StepId next_unissued_{1};
  std::vector<LayoutEvent> past_;
  uint64_t epoch_ = 0;
  bool open_ = false;
  Layout layout_ = kEp, target_ = kEp;
  std::set<Rank> prepared_, switched_;
  std::set<uint64_t> logged_;
  int refusals_ = 0;
};

TEST(LayoutMachine, RandomWalkNeverReversesADecision) {
  int commits = 0, refusals = 0;
  for (uint32_t seed = 0; seed < 200; ++seed) {
    SCOPED_TRACE(testing::Message() << "seed " << seed);
    World world(seed);
    ASSERT_NO_FATAL_FAILURE(world.Run(1000));
    commits += world.commits();
    refusals += world.refusals();
  }
  EXPECT_GT(commits, 500);
  EXPECT_GT(refusals, 500);
}

}  // namespace
}  // namespace moebius
