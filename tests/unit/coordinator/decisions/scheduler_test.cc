#include "coordinator/decisions/scheduler.h"

#include <map>
#include <string>
#include <utility>
#include <vector>

#include "gtest/gtest.h"
#include "tests/status_matchers.h"
#include "tests/unit/coordinator/decisions/scheduler_rig.h"

namespace moebius {
namespace {

using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::SizeIs;

// ---- refusals --------------------------------------------------------------

TEST(Scheduler, CreateRefusesNonsense) {
  const auto refused = [](auto change) {
    SchedulerOptions options = Options();
    change(options);
    return Scheduler::Create(options).status();
  };
  EXPECT_FALSE(refused([](auto& o) { o.attention.num_q_heads = 3; }).ok());
  EXPECT_FALSE(refused([](auto& o) { o.layout = Layout{3}; }).ok());
  EXPECT_THAT(refused([](auto& o) { o.max_running = 0; }),
              StatusIs(absl::StatusCode::kInvalidArgument,
                       HasSubstr("max_running is 0")));
  EXPECT_FALSE(refused([](auto& o) { o.max_running = 1 << 30; }).ok());
  EXPECT_FALSE(refused([](auto& o) { o.max_queue = 0; }).ok());
  EXPECT_FALSE(refused([](auto& o) { o.token_budget = 0; }).ok());
  EXPECT_FALSE(refused([](auto& o) { o.max_model_len = 0; }).ok());
  EXPECT_FALSE(refused([](auto& o) { o.pages_per_rank.pop_back(); }).ok());
  EXPECT_FALSE(refused([](auto& o) { o.pages_per_rank[0] = ~0u; }).ok());
  EXPECT_FALSE(refused([](auto& o) { o.first_step = StepId{0}; }).ok());
  EXPECT_THAT(refused([](auto& o) { o.pages_per_rank[1] = 1; }),
              StatusIs(absl::StatusCode::kInvalidArgument,
                       HasSubstr("not one block fits")));
}

TEST(Scheduler, AddRefusesWithNumbersAndChangesNothing) {
  SchedulerOptions options = Options(2, 20);  // 10 blocks, 160 tokens
  options.max_queue = 2;
  Rig rig(options);
  EXPECT_THAT(rig.Add(1, 0, 5), StatusIs(absl::StatusCode::kInvalidArgument));
  EXPECT_THAT(rig.Add(1, 5, 0), StatusIs(absl::StatusCode::kInvalidArgument));
  EXPECT_THAT(rig.Add(1, 256, 5),
              StatusIs(absl::StatusCode::kInvalidArgument,
                       AllOf(HasSubstr("256 tokens"), HasSubstr("256, of"))));
  // 161 tokens whose KV is needed are 11 blocks.
  EXPECT_THAT(rig.Add(1, 100, 62), StatusIs(absl::StatusCode::kInvalidArgument,
                                            AllOf(HasSubstr("22 KV head pages"),
                                                  HasSubstr("has 20"))));
  EXPECT_EQ(rig.scheduler.counters().waiting, 0);
  EXPECT_TRUE(rig.scheduler.idle());

  EXPECT_THAT(rig.Add(1, 100, 61), IsOk());
  EXPECT_THAT(rig.Add(1, 3, 3), StatusIs(absl::StatusCode::kAlreadyExists));
  EXPECT_EQ(rig.scheduler.queue_room(), 1);
  EXPECT_THAT(rig.Add(2, 3, 3), IsOk());
  EXPECT_THAT(rig.Add(3, 3, 3), StatusIs(absl::StatusCode::kResourceExhausted));
  EXPECT_EQ(rig.scheduler.counters().waiting, 2);
  rig.Issue();
  EXPECT_THAT(rig.Add(3, 3, 3), IsOk());
}

// The token behind it needs no KV.
TEST(Scheduler, APromptThatFillsTheContextIsScoredAndNothingMore) {
  Rig rig(Options(2, 32));  // 16 blocks of two heads: just the context
  SamplingParams sampling;
  sampling.num_prompt_logprobs = 0;
  EXPECT_THAT(rig.Add(1, 256, 2, sampling),
              StatusIs(absl::StatusCode::kInvalidArgument));
  EXPECT_THAT(rig.Add(1, 257, 1, sampling),
              StatusIs(absl::StatusCode::kInvalidArgument));
  ASSERT_THAT(rig.Add(1, 256, 1, sampling), IsOk());
  std::vector<NewToken> tokens;
  for (int step = 0; step < 20 && tokens.empty(); ++step) {
    rig.Issue();
    tokens = rig.Deliver();
  }
  ASSERT_THAT(tokens, SizeIs(1));
  EXPECT_EQ(tokens[0].token.position, 256u);
  EXPECT_THAT(tokens[0].prompt_logprobs, SizeIs(255));
  EXPECT_TRUE(tokens[0].reached_limit);
  EXPECT_FALSE(rig.scheduler.NextStep().has_value());
  EXPECT_TRUE(rig.scheduler.Finish(RequestId{1}));
  // A later coordinator takes it up as it takes up all others.
  EXPECT_THAT(rig.scheduler.AddKnown(RequestId{2}, std::vector<int32_t>(256, 7),
                                     sampling, 1, {}),
              IsOk());
  EXPECT_THAT(rig.scheduler.AddKnown(RequestId{3}, std::vector<int32_t>(256, 7),
                                     sampling, 1, {7}),
              StatusIs(absl::StatusCode::kInvalidArgument));
}

TEST(Scheduler, FinishAndAbortIgnoreUnknownIds) {
  Rig rig(Options());
  EXPECT_FALSE(rig.scheduler.Finish(RequestId{9}));
  EXPECT_FALSE(rig.scheduler.Abort(RequestId{9}));
}

TEST(Scheduler, ResultsThatDoNotMatchTheStepAreRefusedAndChangeNothing) {
  Rig rig(Options());
  ASSERT_THAT(rig.Add(1, 5, 4), IsOk());
  ASSERT_THAT(rig.Add(2, 5, 4), IsOk());
  const StepPlan plan = rig.Issue();
  ASSERT_THAT(plan.items, SizeIs(2));
  const std::vector<StepResult> good = rig.results.front().second;
  const auto refused = [&](auto change, StepId step) {
    std::vector<StepResult> results = good;
    change(results);
    const auto status =
        rig.scheduler.OnResult(step, absl::MakeSpan(results)).status();
    EXPECT_THAT(status, StatusIs(absl::StatusCode::kInvalidArgument));
    return std::string(status.message());
  };
  const StepId now = plan.step;
  // Each request is on a rank of its own.
  ASSERT_THAT(good[0].sampled, SizeIs(1));
  ASSERT_THAT(good[1].sampled, SizeIs(1));
  EXPECT_THAT(refused([](auto&) {}, now.next()), HasSubstr("not the oldest"));
  EXPECT_THAT(refused([](auto& r) { r.pop_back(); }, now),
              HasSubstr("no token"));
  EXPECT_THAT(refused([&](auto& r) { r[1].step = now.next(); }, now),
              HasSubstr("among those"));
  EXPECT_THAT(refused([](auto& r) { r[1].sampled.clear(); }, now),
              HasSubstr("no token"));
  EXPECT_THAT(
      refused([](auto& r) { r[0].sampled.push_back(r[1].sampled[0]); }, now),
      HasSubstr("a second token"));
  EXPECT_THAT(refused([](auto& r) { ++r[0].sampled[0].position; }, now),
              HasSubstr("not asked for"));
  EXPECT_THAT(refused([](auto& r) { r[0].sampled[0].slot = 5; }, now),
              HasSubstr("not asked for"));
  EXPECT_THAT(refused([](auto& r) { r[0].sampled[0].slot = 5000; }, now),
              HasSubstr("not asked for"));
  EXPECT_THAT(refused(
                  [](auto& r) {
                    r[0].prompt_logprobs.push_back({0, 1, 7, 0, {}});
                  },
                  now),
              HasSubstr("prompt logprob not asked for"));
  EXPECT_THAT(rig.Deliver(), SizeIs(2));
  // Once is enough.
  EXPECT_THAT(refused([](auto&) {}, now), HasSubstr("not the oldest"));
}

TEST(Scheduler, ARefusedSequenceIsNamedOnceAndWaitsForItsEnd) {
  Rig rig(Options());
  ASSERT_THAT(rig.Add(1, 5, 4), IsOk());
  ASSERT_THAT(
      rig.scheduler.Add(RequestId{2},
                        std::vector<int32_t>(100, kSimulatedVocabulary), {}, 4),
      IsOk());
  // Its prompt takes two steps, and both tell of it.
  rig.Issue();
  rig.Issue();
  EXPECT_THAT(rig.Deliver(), SizeIs(1));
  EXPECT_THAT(rig.scheduler.TakeRefused(),
              ElementsAre(RefusedRequest{RequestId{2}, kRefusal}));
  EXPECT_TRUE(rig.scheduler.Abort(RequestId{2}));
  EXPECT_THAT(rig.Deliver(), SizeIs(1));
  EXPECT_THAT(rig.scheduler.TakeRefused(), IsEmpty());
  // What it had is free again.
  rig.Issue();
  EXPECT_EQ(rig.scheduler.counters().running, 1);
  EXPECT_EQ(rig.group.live(), 1);
}

TEST(Scheduler, ARefusalWithoutWorkIsNoResult) {
  Rig rig(Options());
  ASSERT_THAT(rig.Add(1, 5, 4), IsOk());
  rig.Issue();
  std::vector<StepResult> results = rig.results.front().second;
  results[0].refused.push_back({7, "why"});
  EXPECT_THAT(
      rig.scheduler.OnResult(StepId{1}, absl::MakeSpan(results)).status(),
      StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("slot 7")));
  EXPECT_THAT(rig.scheduler.TakeRefused(), IsEmpty());
  EXPECT_THAT(rig.Deliver(), SizeIs(1));
}

// Those of the positions that were computed died with the coordinator that had
// collected them.
TEST(Scheduler, APromptWithLogprobsIsAdoptedWithoutWhatIsComputed) {
  for (const int num_prompt_logprobs : {-1, 0}) {
    Rig rig(Options(2, 20));
    SamplingParams sampling;
    sampling.num_prompt_logprobs = num_prompt_logprobs;
    ASSERT_THAT(rig.scheduler.AddKnown(RequestId{1}, {1, 2, 3, 4, 5, 6},
                                       sampling, 4, {}),
                IsOk());
    const KvTable table{0, 1, {{0, 0, 2, {0, 1}}}};
    ASSERT_THAT(rig.scheduler.Adopt({{{RequestId{1}, table, 4}}}), IsOk());
    const auto plan = rig.scheduler.NextStep();
    ASSERT_TRUE(plan.has_value());
    ASSERT_THAT(plan->items, SizeIs(1));
    EXPECT_EQ(plan->items[0].position, num_prompt_logprobs < 0 ? 4u : 0u);
  }
}

TEST(Scheduler, PromptLogprobsWithAGapAreRefused) {
  Rig rig(Options());
  SamplingParams sampling;
  sampling.num_prompt_logprobs = 2;
  ASSERT_THAT(rig.Add(1, 5, 4, sampling), IsOk());
  const StepPlan plan = rig.Issue();
  const std::vector<StepResult> good = rig.results.front().second;
  ASSERT_THAT(good[0].prompt_logprobs, SizeIs(4));
  const auto refused = [&](auto change) {
    std::vector<StepResult> results = good;
    change(results[0].prompt_logprobs);
    const auto status =
        rig.scheduler.OnResult(plan.step, absl::MakeSpan(results)).status();
    EXPECT_THAT(status, StatusIs(absl::StatusCode::kInvalidArgument));
    return std::string(status.message());
  };
  EXPECT_THAT(refused([](auto& l) { l.pop_back(); }),
              HasSubstr("no prompt logprob of slot 0 at position 4"));
  EXPECT_THAT(refused([](auto& l) { l.clear(); }), HasSubstr("position 1"));
  EXPECT_THAT(refused([](auto& l) { l.erase(l.begin() + 1); }),
              HasSubstr("out of order"));
  EXPECT_THAT(refused([](auto& l) { l.back().position = 5; }),
              HasSubstr("out of order"));
  EXPECT_THAT(refused([](auto& l) { l.front().position = 0; }),
              HasSubstr("out of order"));
  const auto tokens = rig.Deliver();
  ASSERT_THAT(tokens, SizeIs(1));
  EXPECT_THAT(tokens[0].prompt_logprobs, SizeIs(4));
}

TEST(Scheduler, NoMoreStepsAheadThanTheBound) {
  Rig rig(Options());
  ASSERT_THAT(rig.Add(1, 5, 100), IsOk());
  for (int i = 0; i < kMaxStepsInFlight; ++i) {
    ASSERT_THAT(rig.Issue().items, SizeIs(1));
  }
  EXPECT_EQ(rig.scheduler.NextStep(), std::nullopt);
  rig.Deliver();
  EXPECT_THAT(rig.Issue().items, SizeIs(1));
}

// ---- what a step holds -----------------------------------------------------

TEST(Scheduler, DecodesFirstThenPromptsInOrderWithinTheBudget) {
  SchedulerOptions options = Options(1);
  options.token_budget = 10;
  Rig rig(options);
  ASSERT_THAT(rig.Add(1, 4, 5), IsOk());
  rig.Issue();
  ASSERT_THAT(rig.Add(2, 12, 5), IsOk());
  ASSERT_THAT(rig.Add(3, 5, 5), IsOk());
  // 1 decode, 9 of the 12.
  StepPlan plan = rig.Issue();
  EXPECT_THAT(plan.items, ElementsAre(WorkItem{0, 4, 1, 0, true},
                                      WorkItem{1, 0, 9, 0, false}));
  // 1 decode, the other 3, all 5 of the next: and one token to spare.
  plan = rig.Issue();
  EXPECT_THAT(plan.items, ElementsAre(WorkItem{0, 5, 1, 0, true},
                                      WorkItem{1, 9, 3, 0, true},
                                      WorkItem{2, 0, 5, 0, true}));
  plan = rig.Issue();
  EXPECT_THAT(plan.items, ElementsAre(WorkItem{0, 6, 1, 0, true},
                                      WorkItem{1, 12, 1, 0, true},
                                      WorkItem{2, 5, 1, 0, true}));
}

TEST(Scheduler, DecodesBeyondTheBudgetWaitForTheOldest) {
  SchedulerOptions options = Options(1);
  options.token_budget = 2;
  Rig rig(options);
  for (uint64_t id = 1; id <= 3; ++id) ASSERT_THAT(rig.Add(id, 1, 3), IsOk());
  EXPECT_THAT(rig.Issue().items, SizeIs(2));
  for (int i = 0; i < 2; ++i) {
    const StepPlan plan = rig.Issue();
    ASSERT_THAT(plan.items, SizeIs(2));
    EXPECT_EQ(plan.items[0].slot, 0u);
    EXPECT_EQ(plan.items[1].slot, 1u);
  }
  EXPECT_THAT(rig.Issue().admissions, SizeIs(1));
}

TEST(Scheduler, WhatIsNewIsInOnePlanOnly) {
  Rig rig(Options());
  ASSERT_THAT(rig.Add(1, 17, 20), IsOk());
  StepPlan plan = rig.Issue();
  EXPECT_THAT(plan.admissions, SizeIs(1));
  EXPECT_EQ(plan.admissions[0].num_prompt_tokens, 17u);
  EXPECT_THAT(plan.page_rows, SizeIs(2));
  EXPECT_THAT(plan.released, IsEmpty());
  for (int i = 0; i < 15; ++i) {  // positions 17 .. 31
    plan = rig.Issue();
    EXPECT_THAT(plan.admissions, IsEmpty());
    EXPECT_THAT(plan.page_rows, IsEmpty());
    rig.DeliverAll();
  }
  plan = rig.Issue();  // position 32
  EXPECT_THAT(plan.page_rows, SizeIs(1));
  EXPECT_EQ(plan.page_rows[0].block, 2u);
  ASSERT_TRUE(rig.scheduler.Finish(RequestId{1}));
  ASSERT_THAT(rig.Add(2, 3, 1), IsOk());
  plan = rig.Issue();
  EXPECT_THAT(plan.released, ElementsAre(0u));
  ASSERT_THAT(plan.admissions, SizeIs(1));
  EXPECT_EQ(plan.admissions[0].slot, 0u);  // the slot is free at once
}

TEST(Scheduler, IssuesAheadOfResultsUntilMaxTokens) {
  Rig rig(Options());
  ASSERT_THAT(rig.Add(1, 5, 4), IsOk());
  for (uint32_t i = 0; i < 4; ++i) {
    const StepPlan plan = rig.Issue();
    ASSERT_THAT(plan.items, SizeIs(1));
    EXPECT_TRUE(plan.items[0].sample);
  }
  EXPECT_EQ(rig.scheduler.NextStep(), std::nullopt);
  for (int i = 0; i < 4; ++i) {
    const auto tokens = rig.Deliver();
    ASSERT_THAT(tokens, SizeIs(1));
    EXPECT_EQ(tokens[0].token.position, 5u + i);
    EXPECT_EQ(tokens[0].reached_limit, i == 3);
  }
  EXPECT_FALSE(rig.scheduler.idle());
  EXPECT_TRUE(rig.scheduler.Finish(RequestId{1}));
  EXPECT_TRUE(rig.scheduler.idle());
}

TEST(Scheduler, MaxTokensAreCutToTheContext) {
  SchedulerOptions options = Options();
  options.max_model_len = 8;
  Rig rig(options);
  ASSERT_THAT(rig.Add(1, 5, 1000), IsOk());
  int tokens = 0;
  while (!rig.Issue().items.empty()) ++tokens;
  EXPECT_EQ(tokens, 3);
}

TEST(Scheduler, SamplesOfEndedRequestsAreDropped) {
  Rig rig(Options());
  ASSERT_THAT(rig.Add(1, 5, 50), IsOk());
  rig.Issue();
  rig.Issue();
  EXPECT_THAT(rig.Deliver(), SizeIs(1));
  ASSERT_TRUE(rig.scheduler.Finish(RequestId{1}));
  // Another request takes slot and index of the first.
  ASSERT_THAT(rig.Add(2, 5, 50), IsOk());
  EXPECT_THAT(rig.Issue().admissions, SizeIs(1));
  EXPECT_THAT(rig.Deliver(), IsEmpty());
  const auto tokens = rig.Deliver();
  ASSERT_THAT(tokens, SizeIs(1));
  EXPECT_EQ(tokens[0].request, RequestId{2});
}

// ---- placement -------------------------------------------------------------

TEST(Scheduler, OwnerIsTheRankWithLeastTokensThenFewestRequestsThenLowest) {
  SchedulerOptions options = Options(4);
  options.attention = {4, 8, 2};
  options.token_budget = 1000;
  Rig rig(options);
  const int prompts[] = {50, 20, 20, 10, 10, 30, 5};
  for (uint64_t i = 0; i < 7; ++i) {
    ASSERT_THAT(rig.Add(i, prompts[i], 5), IsOk());
  }
  const StepPlan plan = rig.Issue();
  std::map<uint32_t, int> owner;
  for (const WorkItem& item : plan.items) owner[item.slot] = item.group;
  // 50 | 20 | 20 | 10, then 10 to rank 3, 30 to the lowest of three with 20
  // but fewest requests: rank 1; 5 to rank 2.
  EXPECT_EQ(owner,
            (std::map<uint32_t, int>{
                {0, 0}, {1, 1}, {2, 2}, {3, 3}, {4, 3}, {5, 1}, {6, 2}}));
}

TEST(Scheduler, OwnerMustHaveRoom) {
  SchedulerOptions options = Options(2, 20);
  options.pages_per_rank = {20, 40};
  Rig rig(options);
  ASSERT_THAT(rig.Add(1, 60, 90), IsOk());   // rank 0: 8 of its 20 pages
  ASSERT_THAT(rig.Add(2, 100, 50), IsOk());  // rank 1
  ASSERT_THAT(rig.Add(3, 100, 50), IsOk());  // rank 0 has the least tokens
  std::map<uint64_t, int> owner;
  for (int i = 0; i < 5; ++i) {
    const StepPlan plan = rig.Issue();
    for (const Admission& a : plan.admissions) {
      for (const WorkItem& item : plan.items) {
        if (item.slot == a.slot) owner[a.request.value] = item.group;
      }
    }
  }
  EXPECT_EQ(owner, (std::map<uint64_t, int>{{1, 0}, {2, 1}, {3, 1}}));
}

TEST(Scheduler, LongPromptsOfSeveralRanksShareTheBudget) {
  Rig rig(Options(2));
  ASSERT_THAT(rig.Add(1, 100, 5), IsOk());
  ASSERT_THAT(rig.Add(2, 100, 5), IsOk());
  StepPlan plan = rig.Issue();
  ASSERT_THAT(plan.items, SizeIs(2));
  EXPECT_EQ(plan.items[0].num_tokens, 32u);
  EXPECT_EQ(plan.items[1].num_tokens, 32u);
  // A prompt alone takes the whole budget.
  ASSERT_TRUE(rig.scheduler.Abort(RequestId{2}));
  plan = rig.Issue();
  ASSERT_THAT(plan.items, SizeIs(1));
  EXPECT_EQ(plan.items[0].num_tokens, 64u);
}

// ---- counters --------------------------------------------------------------

TEST(Scheduler, CountersTellWhatHappened) {
  Rig rig(Options(2));
  ASSERT_THAT(rig.Add(1, 40, 3), IsOk());
  EXPECT_EQ(rig.scheduler.counters().waiting, 1);
  EXPECT_EQ(rig.scheduler.counters().prompt_tokens, 0u);
  rig.Issue();
  EXPECT_EQ(rig.scheduler.counters().running, 1);
  EXPECT_EQ(rig.scheduler.counters().prompt_tokens, 40u);
  EXPECT_EQ(rig.scheduler.free_pages(0), 994u);
  rig.Issue();
  rig.DeliverAll();
  EXPECT_EQ(rig.scheduler.counters().generated_tokens, 2u);
  EXPECT_EQ(rig.scheduler.counters().preemptions, 0u);
}

}  // namespace
}  // namespace moebius
