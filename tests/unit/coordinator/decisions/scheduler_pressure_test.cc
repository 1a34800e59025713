// Preemption and switches: what happens to requests that are on their way.
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "coordinator/decisions/scheduler.h"
#include "gtest/gtest.h"
#include "tests/status_matchers.h"
#include "tests/unit/coordinator/decisions/scheduler_rig.h"

namespace moebius {
namespace {

using testing::ElementsAre;
using testing::SizeIs;

// ---- preemption ------------------------------------------------------------

// Room for 6 blocks on the only rank.
SchedulerOptions TightOptions() {
  SchedulerOptions options = Options(1, 12);
  options.attention = {1, 2, 2};
  options.max_model_len = 96;
  return options;
}

TEST(Scheduler, LatestArrivalGivesWayAndComesBackWithItsTokens) {
  Rig rig(TightOptions());
  ASSERT_THAT(rig.Add(1, 30, 66), IsOk());  // grows to 6 blocks
  ASSERT_THAT(rig.Add(2, 20, 60), IsOk());
  rig.Issue();
  EXPECT_EQ(rig.scheduler.counters().running, 2);
  // Needs the whole pool; it came later than 2 and must stay behind it.
  ASSERT_THAT(rig.Add(3, 90, 2), IsOk());
  std::vector<int32_t> second;
  while (rig.scheduler.counters().preemptions == 0) {
    ASSERT_THAT(rig.Issue().items, SizeIs(testing::Ge(1u)));
    if (rig.results.size() < 3) continue;
    for (const NewToken& t : rig.Deliver()) {
      if (t.request == RequestId{2}) second.push_back(t.token.token);
    }
  }
  EXPECT_EQ(rig.scheduler.counters().running, 1);
  EXPECT_EQ(rig.scheduler.counters().waiting, 2);
  while (rig.group.second_admissions().empty()) {
    ASSERT_TRUE(!rig.Issue().items.empty() || !rig.results.empty());
    for (const NewToken& t : rig.Deliver()) {
      if (t.request == RequestId{2}) second.push_back(t.token.token);
      if (t.request == RequestId{1} && t.reached_limit) {
        ASSERT_TRUE(rig.scheduler.Finish(t.request));
        const StepPlan plan = rig.Issue();
        ASSERT_THAT(plan.admissions, SizeIs(1));
        EXPECT_EQ(plan.admissions[0].request, RequestId{2});
        EXPECT_EQ(plan.admissions[0].num_prompt_tokens, 20u);
        EXPECT_EQ(plan.admissions[0].tokens.size(), 20 + second.size());
        break;
      }
    }
  }
  EXPECT_THAT(rig.group.second_admissions(), ElementsAre(RequestId{2}));
  while (second.size() < 60) {
    ASSERT_TRUE(!rig.Issue().items.empty() || !rig.results.empty());
    for (const NewToken& t : rig.Deliver()) {
      if (t.request != RequestId{2}) continue;
      EXPECT_EQ(t.token.position, 20 + second.size());
      second.push_back(t.token.token);
    }
  }
  EXPECT_EQ(second, QuietRun(2, std::vector<int32_t>(20, 7), 60));
}

TEST(Scheduler, PreemptedRequestsMayEndWhileTheyWait) {
  Rig rig(TightOptions());
  ASSERT_THAT(rig.Add(1, 30, 66), IsOk());
  ASSERT_THAT(rig.Add(2, 20, 60), IsOk());
  while (rig.scheduler.counters().preemptions == 0) {
    rig.Issue();
    if (rig.results.size() > 2) rig.Deliver();
  }
  ASSERT_TRUE(rig.scheduler.Abort(RequestId{2}));
  rig.DeliverAll();
  EXPECT_EQ(rig.scheduler.counters().waiting, 0);
  ASSERT_TRUE(rig.scheduler.Abort(RequestId{1}));
  EXPECT_EQ(rig.scheduler.free_pages(0), 12u);
}

TEST(Scheduler, NothingReEntersBeforeItsSamplesAreIn) {
  Rig rig(TightOptions());
  ASSERT_THAT(rig.Add(1, 30, 66), IsOk());
  ASSERT_THAT(rig.Add(2, 20, 60), IsOk());
  while (rig.scheduler.counters().preemptions == 0) {
    rig.Issue();
    if (rig.results.size() > 3) rig.Deliver();
  }
  // The pages are there, but not all of request 2's tokens are known.
  ASSERT_TRUE(rig.scheduler.Finish(RequestId{1}));
  ASSERT_GE(rig.results.size(), 3u);
  EXPECT_EQ(rig.scheduler.NextStep(), std::nullopt);
  rig.DeliverAll();
  EXPECT_THAT(rig.Issue().admissions, SizeIs(1));
}

TEST(Scheduler, PreemptedWithNothingLeftToIssueIsNotRunAgain) {
  SchedulerOptions options = TightOptions();
  options.pages_per_rank = {8};  // 4 blocks
  options.max_model_len = 64;
  Rig rig(options);
  ASSERT_THAT(rig.Add(1, 30, 30), IsOk());  // takes all 4 in the end
  ASSERT_THAT(rig.Add(2, 10, 2), IsOk());
  rig.Issue();
  ASSERT_EQ(rig.scheduler.counters().running, 2);
  // The host is slow to say that request 2 has ended.
  while (rig.scheduler.counters().preemptions == 0) {
    ASSERT_FALSE(rig.Issue().items.empty());
    rig.DeliverAll();
  }
  EXPECT_EQ(rig.scheduler.counters().running, 1);
  EXPECT_EQ(rig.scheduler.counters().waiting, 0);
  ASSERT_THAT(rig.Add(3, 5, 3), IsOk());
  ASSERT_TRUE(rig.scheduler.Finish(RequestId{1}));
  const StepPlan plan = rig.Issue();
  ASSERT_THAT(plan.admissions, SizeIs(1));
  EXPECT_EQ(plan.admissions[0].request, RequestId{3});
  EXPECT_TRUE(rig.scheduler.Finish(RequestId{2}));
  EXPECT_TRUE(rig.scheduler.Finish(RequestId{3}));
  EXPECT_TRUE(rig.scheduler.idle());
  EXPECT_EQ(rig.scheduler.free_pages(0), 8u);
}

TEST(Scheduler, NewcomersDoNotTakePagesPromisedToAPrompt) {
  SchedulerOptions options = TightOptions();
  options.attention = {2, 4, 2};
  options.pages_per_rank = {12, 12};
  options.token_budget = 20;
  Rig rig(options);
  ASSERT_THAT(rig.Add(1, 90, 3), IsOk());  // all 6 blocks of rank 0
  ASSERT_THAT(rig.Add(2, 90, 3), IsOk());  // and of rank 1
  ASSERT_THAT(rig.Add(3, 5, 3), IsOk());
  for (int i = 0; i < 9; ++i) {
    rig.Issue();
    rig.DeliverAll();
    EXPECT_EQ(rig.scheduler.counters().running, 2);
    EXPECT_EQ(rig.scheduler.counters().waiting, 1);
  }
  EXPECT_EQ(rig.scheduler.counters().generated_tokens, 2u);
}

TEST(Scheduler, OfTwoPromptsThatCannotBothGoOnTheOlderDoes) {
  // One KV head on two ranks: TP holds everything twice. Two half-prefilled
  // prompts that fill the pools after the switch cannot both go on.
  SchedulerOptions options = Options(2, 10);
  options.attention = {2, 2, 1};
  options.max_model_len = 160;
  options.token_budget = 16;
  Rig rig(options);
  ASSERT_THAT(rig.Add(1, 150, 10), IsOk());
  ASSERT_THAT(rig.Add(2, 150, 10), IsOk());
  for (int i = 0; i < 10; ++i) rig.Issue();  // 5 blocks each
  rig.DeliverAll();
  const auto plan = rig.scheduler.PlanSwitch(TensorParallel(2));
  ASSERT_THAT(plan, IsOk());
  rig.group.Switch(TensorParallel(2), *plan);
  ASSERT_THAT(rig.scheduler.ApplySwitch(TensorParallel(2), *plan), IsOk());
  ASSERT_EQ(rig.scheduler.free_pages(0), 0u);
  std::map<uint64_t, std::vector<int32_t>> tokens;
  while (!rig.scheduler.idle()) {
    ASSERT_FALSE(rig.Issue().items.empty()) << "stuck";
    for (const NewToken& t : rig.Deliver()) {
      tokens[t.request.value].push_back(t.token.token);
      if (t.reached_limit) {
        ASSERT_TRUE(rig.scheduler.Finish(t.request));
      }
    }
  }
  EXPECT_THAT(rig.group.second_admissions(), ElementsAre(RequestId{2}));
  EXPECT_EQ(tokens[1], QuietRun(1, std::vector<int32_t>(150, 7), 10));
  EXPECT_EQ(tokens[2], QuietRun(2, std::vector<int32_t>(150, 7), 10));
}

// ---- switches --------------------------------------------------------------

TEST(Scheduler, SwitchPlansAreRefusedForOtherLayouts) {
  Rig rig(Options(2));
  EXPECT_FALSE(rig.scheduler.PlanSwitch(ExpertParallel()).ok());
  EXPECT_FALSE(rig.scheduler.PlanSwitch(Layout{3}).ok());
  EXPECT_THAT(rig.scheduler.ApplySwitch(ExpertParallel(), {}),
              StatusIs(absl::StatusCode::kFailedPrecondition));
  EXPECT_THAT(rig.scheduler.ApplySwitch(Layout{3}, {}),
              StatusIs(absl::StatusCode::kFailedPrecondition));
}

TEST(Scheduler, PlansOfAnotherStateAreRefusedAndChangeNothing) {
  Rig rig(Options(2));
  const Layout tp = TensorParallel(2);
  ASSERT_THAT(rig.Add(1, 40, 50), IsOk());
  rig.Issue();
  const auto plan = rig.scheduler.PlanSwitch(tp);
  ASSERT_THAT(plan, IsOk());
  const auto refused = [&](auto change) {
    KvPlan other = *plan;
    change(other);
    EXPECT_THAT(rig.scheduler.ApplySwitch(tp, other),
                StatusIs(absl::StatusCode::kFailedPrecondition));
    EXPECT_EQ(rig.scheduler.layout(), ExpertParallel());
  };
  refused([](KvPlan& p) { p.tables.clear(); });
  refused([](KvPlan& p) { p.tables[0].slot = 5; });
  refused([](KvPlan& p) { p.tables[0].slot = 500; });
  refused([](KvPlan& p) { --p.tables[0].num_blocks; });
  refused([](KvPlan& p) { p.tables[0].tables[0].pages[0] = 5000; });
  refused([](KvPlan& p) { p.tables[0].tables.pop_back(); });
  EXPECT_THAT(rig.scheduler.ApplySwitch(tp, *plan), IsOk());
}

TEST(Scheduler, HalfPrefilledRunningAndWaitingSurviveASwitch) {
  SchedulerOptions options = Options(2);
  options.max_running = 2;
  Rig rig(options);
  ASSERT_THAT(rig.Add(1, 10, 20), IsOk());
  ASSERT_THAT(rig.Add(2, 200, 20), IsOk());
  ASSERT_THAT(rig.Add(3, 5, 20), IsOk());
  rig.Issue();
  rig.Issue();
  const auto plan = rig.scheduler.PlanSwitch(TensorParallel(2));
  ASSERT_THAT(plan, IsOk());
  // An abort is doing nothing.
  EXPECT_EQ(rig.scheduler.layout(), ExpertParallel());
  rig.Issue();
  const auto again = rig.scheduler.PlanSwitch(TensorParallel(2));
  ASSERT_THAT(again, IsOk());
  rig.group.Switch(TensorParallel(2), *again);
  ASSERT_THAT(rig.scheduler.ApplySwitch(TensorParallel(2), *again), IsOk());
  EXPECT_EQ(rig.scheduler.counters().waiting, 1);
  std::map<uint64_t, std::vector<int32_t>> tokens;
  while (!rig.scheduler.idle()) {
    const StepPlan next = rig.Issue();
    if (!next.items.empty()) {
      EXPECT_EQ(next.layout.attention, TensorParallel(2));
    }
    for (const NewToken& t : rig.Deliver()) {
      tokens[t.request.value].push_back(t.token.token);
      if (t.reached_limit) {
        EXPECT_TRUE(rig.scheduler.Finish(t.request));
      }
    }
  }
  EXPECT_EQ(tokens[1], QuietRun(1, std::vector<int32_t>(10, 7), 20));
  EXPECT_EQ(tokens[2], QuietRun(2, std::vector<int32_t>(200, 7), 20));
  EXPECT_EQ(tokens[3], QuietRun(3, std::vector<int32_t>(5, 7), 20));
}

TEST(Scheduler, RequestsThatEndWhilePreparingLeaveTheirPagesFree) {
  Rig rig(Options(2));
  ASSERT_THAT(rig.Add(1, 40, 50), IsOk());
  ASSERT_THAT(rig.Add(2, 40, 50), IsOk());
  rig.Issue();
  const auto plan = rig.scheduler.PlanSwitch(TensorParallel(2));
  ASSERT_THAT(plan, IsOk());
  ASSERT_TRUE(rig.scheduler.Finish(RequestId{1}));
  rig.group.Switch(TensorParallel(2), *plan);
  ASSERT_THAT(rig.scheduler.ApplySwitch(TensorParallel(2), *plan), IsOk());
  EXPECT_EQ(rig.scheduler.free_pages(0), 998u);  // 2 blocks, a head each
  EXPECT_EQ(rig.scheduler.free_pages(1), 998u);
  const StepPlan next = rig.Issue();
  EXPECT_THAT(next.released, SizeIs(1));
  EXPECT_THAT(next.items, SizeIs(1));
}

// ---- layouts between -------------------------------------------------------

TEST(Scheduler, SequencesGoToTheGroupWithTheLeastKv) {
  SchedulerOptions options = Options(4, 100);
  options.attention = {4, 8, 4};
  options.layout = Layout{2};
  Rig rig(options);
  ASSERT_THAT(rig.Add(1, 20, 9), IsOk());
  ASSERT_THAT(rig.Add(2, 10, 9), IsOk());
  ASSERT_THAT(rig.Add(3, 9, 9), IsOk());
  const StepPlan plan = rig.Issue();
  ASSERT_THAT(plan.items, SizeIs(3));
  EXPECT_EQ(plan.items[0].group, 0);
  EXPECT_EQ(plan.items[1].group, 1);
  EXPECT_EQ(plan.items[2].group, 1);
  // On both ranks of a group the heads of each, on those of the other none.
  for (const PageRow& row : plan.page_rows) {
    EXPECT_EQ(row.rank / 2, row.slot == plan.items[0].slot ? 0 : 1);
    EXPECT_THAT(row.pages, SizeIs(2));
  }
}

TEST(Scheduler, ADeathTakesTheKvOfItsGroupAlone) {
  SchedulerOptions options = Options(4, 100);
  options.attention = {4, 8, 4};
  options.layout = Layout{2};
  for (Rank lost = 0; lost < 4; ++lost) {
    Rig rig(options);
    ASSERT_THAT(rig.Add(1, 20, 9), IsOk());
    ASSERT_THAT(rig.Add(2, 10, 9), IsOk());
    rig.Issue();
    rig.DeliverAll();
    rig.scheduler.RollBack();
    rig.scheduler.LoseKv(RankSet().with(lost), /*everything=*/false);
    const auto left = rig.scheduler.Snapshot();
    ASSERT_THAT(left, SizeIs(1));
    EXPECT_EQ(left[0].admission.request, RequestId{lost < 2 ? 2u : 1u});
    EXPECT_EQ(rig.scheduler.counters().waiting, 1);
  }
}

// With 8 ranks TP holds each of 4 heads twice: half of what fits in groups of
// four.
TEST(Scheduler, ASwitchIntoLessRoomIsRefusedWithTheNumbers) {
  SchedulerOptions options = Options(8, 16);
  options.attention = {8, 8, 4};
  options.layout = Layout{4};
  options.max_model_len = 60;
  options.max_running = 16;
  options.token_budget = 512;
  Rig rig(options);
  // Six sequences of 4 blocks in each group of 16 blocks' room: 3 in each.
  for (uint64_t id = 1; id <= 6; ++id) {
    ASSERT_THAT(rig.Add(id, 50, 9), IsOk());
  }
  ASSERT_THAT(rig.Issue().admissions, SizeIs(6));
  EXPECT_THAT(
      rig.scheduler.PlanSwitch(TensorParallel(8)),
      StatusIs(absl::StatusCode::kResourceExhausted,
               testing::HasSubstr("all KV memory holds 512 tokens in tp4 and "
                                  "256 tokens in tp (each KV head 2 times)")));
  EXPECT_THAT(rig.scheduler.PlanSwitch(Layout{2}), IsOk());
  EXPECT_THAT(rig.scheduler.PlanSwitch(ExpertParallel()), IsOk());
}

TEST(Scheduler, LayoutsIntoWhichTheHeadsDoNotDivideAreNone) {
  SchedulerOptions options = Options(12, 100);
  options.attention = {12, 12, 4};
  EXPECT_FALSE(Scheduler::Create(options)->PlanSwitch(Layout{6}).ok());
  options.layout = Layout{6};
  EXPECT_THAT(Scheduler::Create(options),
              StatusIs(absl::StatusCode::kInvalidArgument));
}

}  // namespace
}  // namespace moebius
