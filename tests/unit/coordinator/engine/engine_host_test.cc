// Requests and switches: every request's tokens are those of a quiet run.
#include <atomic>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/unit/coordinator/engine/engine_host_fixture.h"

namespace moebius {
namespace {

using testing::HasSubstr;

TEST_F(EngineHostTest, NothingIsAcceptedBeforeTheGroupIsWhole) {
  Start(/*join=*/false);
  EXPECT_THAT(engine_->Submit({Request(4, 4)}, ""),
              StatusIs(absl::StatusCode::kUnavailable, HasSubstr("waiting")));
  EXPECT_THAT(SwitchTo(LayoutChoice::kTp),
              StatusIs(absl::StatusCode::kUnavailable));
  EXPECT_FALSE(engine_->GetStatus().ready);
}

TEST_F(EngineHostTest, StatusTellsWhoHasComeBeforeTheGroupIsWhole) {
  Start(/*join=*/false);
  hub_->Revive(0);
  // Each goes through the engine's loop once; the worker is greeted and answers
  // in a few.
  for (int i = 0; i < 10; ++i) {
    EXPECT_THAT(SwitchTo(LayoutChoice::kTp),
                StatusIs(absl::StatusCode::kUnavailable));
  }
  const EngineStatus status = engine_->GetStatus();
  EXPECT_FALSE(status.ready);
  EXPECT_TRUE(status.workers[0].connected);
  EXPECT_GT(status.workers[0].pages_total, 0u);
  EXPECT_EQ(status.workers[0].pages_free, status.workers[0].pages_total);
  EXPECT_FALSE(status.workers[1].connected);
}

TEST_F(EngineHostTest, EveryRequestGetsTheTokensOfAQuietRun) {
  Start();
  std::vector<RequestId> ids;
  for (int i = 0; i < 40; ++i) ids.push_back(Submit(Request(1 + i * 5, 20)));
  for (int i = 0; i < 40; ++i) {
    const auto stream = listener_.AwaitEnd(ids[i]);
    EXPECT_EQ(stream.finish, FinishReason::kLength);
    EXPECT_EQ(stream.tokens,
              QuietRun(ids[i].value, Request(1 + i * 5, 20).prompt, 20));
    EXPECT_EQ(stream.text, TestTokenizer().Decode(stream.tokens, true));
  }
  const EngineStatus status = engine_->GetStatus();
  EXPECT_EQ(status.requests_total, 40u);
}

TEST_F(EngineHostTest, PromptsThatCannotFitAreRefusedWithBothNumbers) {
  Start();
  EXPECT_THAT(engine_->Submit({Request(1024, 2)}, ""),
              StatusIs(absl::StatusCode::kInvalidArgument,
                       testing::AllOf(HasSubstr("1024"), HasSubstr("1023"))));
  EXPECT_THAT(engine_->Submit({Request(1025, 1)}, ""),
              StatusIs(absl::StatusCode::kInvalidArgument));
  EXPECT_THAT(engine_->Submit({Generation{}}, ""),
              StatusIs(absl::StatusCode::kInvalidArgument));
  // One that fills the context can be scored.
  EXPECT_EQ(listener_.AwaitEnd(Submit(Request(1024, 1))).tokens.size(), 1u);
}

TEST_F(EngineHostTest, MoreThanMayEverWaitIsRefusedForGoodAndNotForNow) {
  Start();
  EXPECT_THAT(
      engine_->Submit(std::vector<Generation>(65, Request(4, 4)), ""),
      StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("1 to 64")));
  EXPECT_THAT(engine_->Submit({}, ""),
              StatusIs(absl::StatusCode::kInvalidArgument));
  const auto ids =
      engine_->Submit(std::vector<Generation>(64, Request(4, 4)), "");
  ASSERT_THAT(ids, IsOk());
  for (const RequestId id : *ids) listener_.AwaitEnd(id);
}

TEST_F(EngineHostTest, StatusCountsWhatEndedOfLate) {
  Start();
  std::vector<RequestId> ids;
  for (int i = 0; i < 5; ++i) ids.push_back(Submit(Request(4, 3)));
  for (const RequestId id : ids) listener_.AwaitEnd(id);
  // Once more through the loop, so that all of it is published.
  EXPECT_THAT(SwitchTo(LayoutChoice::kTp), IsOk());
  EXPECT_EQ(engine_->GetStatus().ended_recently, 5u);
}

TEST_F(EngineHostTest, AFullQueueRefusesAndKeepsWhatItHas) {
  Start();
  hub_->Hold(true);
  std::vector<RequestId> ids;
  absl::Status refused;
  for (int i = 0; i < 200 && refused.ok(); ++i) {
    std::vector<Generation> one;
    one.push_back(Request(4, 4));
    auto got = engine_->Submit(std::move(one), "");
    if (got.ok()) {
      ids.push_back(got->front());
    } else {
      refused = got.status();
    }
  }
  EXPECT_THAT(refused,
              StatusIs(absl::StatusCode::kResourceExhausted, HasSubstr("64")));
  hub_->Hold(false);
  for (RequestId id : ids) {
    EXPECT_EQ(listener_.AwaitEnd(id).tokens.size(), 4u);
  }
}

TEST_F(EngineHostTest, AStopTokenEndsTheRequestAndLaterTokensAreDropped) {
  Start();
  const auto quiet = QuietRun(1, Request(6, 30).prompt, 30);
  Generation generation = Request(6, 30);
  generation.stop.stop_token_ids = {quiet[9]};
  const size_t first =
      std::find(quiet.begin(), quiet.end(), quiet[9]) - quiet.begin();
  const RequestId id = Submit(std::move(generation));
  ASSERT_EQ(id, RequestId{1});
  const auto stream = listener_.AwaitEnd(id);
  EXPECT_EQ(stream.finish, FinishReason::kStop);
  EXPECT_EQ(stream.stop_reason, std::to_string(quiet[9]));
  EXPECT_EQ(stream.tokens,
            std::vector<int32_t>(quiet.begin(), quiet.begin() + first + 1));
}

TEST_F(EngineHostTest, AbortEndsARequestWithoutAnotherWord) {
  Start();
  const std::vector<RequestId> ids = InMidStream(2, 900, 3);
  engine_->Abort(ids[0]);
  engine_->Abort(RequestId{999});
  hub_->Hold(false);
  EXPECT_EQ(listener_.AwaitEnd(ids[1]).tokens.size(), 900u);
  // Another request after it proves that the engine has seen the abort.
  listener_.AwaitEnd(Submit(Request(4, 2)));
  EXPECT_FALSE(listener_.Get(ids[0]).finish.has_value());
  EXPECT_EQ(engine_->GetStatus().requests_aborted, 1u);
}

TEST_F(EngineHostTest, SwitchesInMidStreamChangeNoToken) {
  Start();
  const std::vector<RequestId> ids = InMidStream(12, 900, 5);
  for (int i = 0; i < 6; ++i) {
    hub_->Hold(true);
    const auto asked = Ask(i % 2 == 0 ? LayoutChoice::kTp : LayoutChoice::kEp);
    hub_->Hold(false);
    const auto report = asked->Await();
    ASSERT_THAT(report, IsOk());
    EXPECT_TRUE(report->done) << report->reason;
    EXPECT_EQ(report->weight_bytes, 2000u);
    EXPECT_EQ(report->to.tp_size, i % 2 == 0 ? 2 : 1);
  }
  for (int i = 0; i < 12; ++i) ExpectQuietTokens(ids[i], 10 + i, 900);
  EXPECT_EQ(engine_->GetStatus().switches_total, 6u);
}

TEST_F(EngineHostTest, SwitchingToTheLayoutItIsInDoesNothing) {
  Start();
  const auto report = SwitchTo(LayoutChoice::kEp);
  ASSERT_THAT(report, IsOk());
  EXPECT_FALSE(report->done);
  EXPECT_EQ(report->reason, "");
}

TEST_F(EngineHostTest, PromptLogprobsAreWholeAndInOrderInBothLayouts) {
  Start();
  for (const LayoutChoice choice : {LayoutChoice::kEp, LayoutChoice::kTp}) {
    ASSERT_THAT(SwitchTo(choice), IsOk());
    std::vector<RequestId> ids;
    for (int i = 0; i < 3; ++i) {
      Generation generation = Request(150, 3);  // several chunks
      generation.sampling.num_prompt_logprobs = 0;
      ids.push_back(Submit(std::move(generation)));
    }
    for (RequestId id : ids) {
      const auto stream = listener_.AwaitEnd(id);
      EXPECT_EQ(stream.finish, FinishReason::kLength);
      ASSERT_EQ(stream.prompt_logprobs.size(), 149u);
      for (uint32_t p = 1; p < 150; ++p) {
        EXPECT_EQ(stream.prompt_logprobs[p - 1].position, p);
      }
    }
  }
}

// A request that the workers refuse, though the coordinator had let it pass.
TEST_F(EngineHostTest, WhatTheWorkersRefuseEndsWithTheirReasonAndNothingElse) {
  Start();
  for (const LayoutChoice choice : {LayoutChoice::kEp, LayoutChoice::kTp}) {
    ASSERT_THAT(SwitchTo(choice), IsOk());
    const RequestId good = Submit(Request(10, 200));
    Generation generation = Request(150, 50);  // several chunks
    generation.prompt[100] = kSimulatedVocabulary;
    generation.sampling.num_prompt_logprobs = 0;
    const RequestId bad = Submit(std::move(generation));
    const auto stream = listener_.AwaitEnd(bad);
    EXPECT_EQ(stream.finish, FinishReason::kError);
    EXPECT_EQ(stream.stop_reason, kRefusal);
    EXPECT_TRUE(stream.tokens.empty());
    ExpectQuietTokens(good, 10, 200);
  }
  EXPECT_EQ(engine_->GetStatus().requests_aborted, 2u);
  // Its pages and slot serve others.
  ExpectQuietTokens(Submit(Request(20, 20)), 20, 20);
  EXPECT_FALSE(failed_.HasBeenNotified());
  EXPECT_EQ(engine_->GetStatus().recoveries_total, 0u);
}

TEST_F(EngineHostTest, WhatTheModelCannotTakeIsNotAccepted) {
  vocab_size_ = 1000;
  Start();
  Generation generation = Request(10, 5);
  generation.prompt[3] = 1000;
  EXPECT_THAT(engine_->Submit({generation}, ""),
              StatusIs(absl::StatusCode::kInvalidArgument,
                       HasSubstr("token 1000 at position 3")));
  generation = Request(10, 5);
  generation.sampling.num_logprobs = kMaxLogprobs + 1;
  EXPECT_THAT(engine_->Submit({generation}, ""),
              StatusIs(absl::StatusCode::kInvalidArgument));
  ExpectQuietTokens(Submit(Request(10, 5)), 10, 5);
}

TEST_F(EngineHostTest, LogitsThatAreNotFiniteAreCounted) {
  Start();
  hub_->SpoilLogits(3);
  ExpectQuietTokens(Submit(Request(10, 5)), 10, 5);
  const EngineStatus status = engine_->GetStatus();
  EXPECT_EQ(status.nonfinite_rows_total, 3u);
  EXPECT_EQ(status.nonfinite_step, 1u);
}

TEST_F(EngineHostTest, ARefusedSwitchGivesTheReasonAndStreamsGoOn) {
  Start();
  const RequestId id = InMidStream(1, 300, 2).front();
  hub_->RefuseNextPrepare("no room");
  const auto asked = Ask(LayoutChoice::kTp);
  hub_->Hold(false);
  const auto report = asked->Await();
  ASSERT_THAT(report, IsOk());
  EXPECT_FALSE(report->done);
  EXPECT_THAT(report->reason, HasSubstr("no room"));
  ExpectQuietTokens(id, 10, 300);
  // And the next one works.
  const auto again = SwitchTo(LayoutChoice::kTp);
  ASSERT_THAT(again, IsOk());
  EXPECT_TRUE(again->done);
  EXPECT_EQ(engine_->GetStatus().switches_refused_total, 1u);
}

TEST_F(EngineHostTest, WeightsThatCameOutDifferentEndTheGroup) {
  Start();
  const RequestId id = InMidStream(1, 900, 2).front();
  hub_->CorruptNextSwitch();
  Ask(LayoutChoice::kTp);
  hub_->Hold(false);
  ASSERT_TRUE(failed_.WaitForNotificationWithTimeout(kLong));
  EXPECT_THAT(failure_, StatusIs(absl::StatusCode::kDataLoss,
                                 HasSubstr("expert weights")));
  EXPECT_EQ(listener_.AwaitEnd(id).finish, FinishReason::kAbort);
  EXPECT_THAT(engine_->Submit({Request(4, 4)}, ""),
              StatusIs(absl::StatusCode::kUnavailable));
}

// The switch was reported as done before.
TEST_F(EngineHostTest, WeightsThatAreFoundWrongLateEndTheGroup) {
  Start();
  hub_->WithholdChecks();
  const auto report = SwitchTo(LayoutChoice::kTp);
  ASSERT_THAT(report, IsOk());
  EXPECT_TRUE(report->done);
  EXPECT_EQ(engine_->GetStatus().switches_checked_total, 0u);
  hub_->CorruptNextSwitch();
  hub_->Check(report->epoch);
  ASSERT_TRUE(failed_.WaitForNotificationWithTimeout(kLong));
  EXPECT_THAT(failure_, StatusIs(absl::StatusCode::kDataLoss,
                                 HasSubstr("after switch 1")));
}

TEST_F(EngineHostTest, ACheckThatTheNextSwitchOvertookMeansNothing) {
  Start();
  hub_->WithholdChecks();
  const auto first = SwitchTo(LayoutChoice::kTp);
  const auto second = SwitchTo(LayoutChoice::kEp);
  ASSERT_THAT(first, IsOk());
  ASSERT_THAT(second, IsOk());
  hub_->CorruptNextSwitch();
  hub_->Check(first->epoch);
  hub_->Check(second->epoch);
  // The wrong one was of the first: it came before, and nothing has failed.
  const auto third = SwitchTo(LayoutChoice::kTp);
  ASSERT_THAT(third, IsOk());
  EXPECT_EQ(engine_->GetStatus().switches_checked_total, 1u);
  EXPECT_FALSE(failed_.HasBeenNotified());
}

TEST_F(EngineHostTest, AnOpenCheckIsAskedForAgainAfterADeath) {
  Start();
  hub_->WithholdChecks();
  ASSERT_THAT(SwitchTo(LayoutChoice::kTp), IsOk());
  const RequestId id = InMidStream(1, 500, 5).front();
  hub_->Kill(1);
  hub_->Hold(false);
  hub_->Revive(1);
  ExpectQuietTokens(id, 10, 500);
  EXPECT_EQ(engine_->GetStatus().switches_checked_total, 1u);
}

// What it means is for the launcher to judge, who hears the reason from the
// worker itself.
TEST_F(EngineHostTest, AWorkerThatCannotLoadIsLeftToTheLauncher) {
  Start(/*join=*/false);
  hub_->FailLoads("no such file");
  hub_->Join();
  AwaitReplaced(1, 1);
  EXPECT_FALSE(failed_.HasBeenNotified());
  EXPECT_FALSE(ready_.HasBeenNotified());
}

TEST_F(EngineHostTest, WhileWeightsLoadStatusSaysHowMuchIsThere) {
  // Rank 1 has not said yet how much it has to load.
  news_ = [](Rank rank) {
    const Incarnation alive{1};
    return rank == 0 ? WorkerNews{alive, "", 600, 800} : WorkerNews{alive};
  };
  Start(/*join=*/false);
  hub_->HoldLoads(true);
  hub_->Join();
  EngineStatus status = engine_->GetStatus();
  while (!status.loaded_share.has_value()) {
    std::this_thread::yield();
    status = engine_->GetStatus();
  }
  EXPECT_FALSE(status.ready);
  EXPECT_EQ(*status.loaded_share, 600.0 / 1600.0);
  EXPECT_EQ(status.not_ready_reason, "loading weights: 37 %");
  hub_->HoldLoads(false);
  ASSERT_TRUE(ready_.WaitForNotificationWithTimeout(kLong));
  EXPECT_FALSE(engine_->GetStatus().loaded_share.has_value());
}

TEST_F(EngineHostTest, AWorkerThatEndsWithoutWorkIsMissed) {
  // The engine outlives the test's body.
  const auto has_ended = std::make_shared<std::atomic<bool>>(false);
  news_ = [has_ended](Rank rank) {
    return WorkerNews{Incarnation{rank == 1 && *has_ended ? 0u : 1u}};
  };
  Start();
  *has_ended = true;
  AwaitReplaced(1, 1);
}

TEST_F(EngineHostTest, NoNewsOfAWorkerIsNoReasonToMissIt) {
  const auto asked = std::make_shared<std::atomic<int>>(0);
  news_ = [asked](Rank) {
    ++*asked;
    return std::nullopt;
  };
  Start();
  while (*asked < 2 * config_.workers.count) std::this_thread::yield();
  EXPECT_TRUE(engine_->GetStatus().ready);
  EXPECT_EQ(engine_->GetStatus().recoveries_total, 0u);
}

TEST_F(EngineHostTest, EngineAtRestGetsOn) {
  const auto told = std::make_shared<std::atomic<int>>(0);
  alive_ = [told] { ++*told; };
  Start();
  while (*told < 2) std::this_thread::yield();
  EXPECT_TRUE(engine_->GetStatus().ready);
}

// A clock that stands still until it is told, and counts who looks at it.
struct HeldClock {
  std::atomic<int64_t> seconds{1000};
  std::atomic<int> looks{0};

  std::chrono::steady_clock::time_point Now() {
    ++looks;
    return std::chrono::steady_clock::time_point(std::chrono::seconds(seconds));
  }
  // The engine's loop has seen the time of now.
  void AwaitTurns() {
    const int begin = looks;
    while (looks < begin + 8) std::this_thread::yield();
  }
};

TEST_F(EngineHostTest, StepsWithoutAResultAreNoProgress) {
  const auto clock = std::make_shared<HeldClock>();
  const auto told = std::make_shared<std::atomic<int>>(0);
  now_ = [clock] { return clock->Now(); };
  alive_ = [told] { ++*told; };
  config_.workers.stall_timeout_ms = 3'600'000;
  Start();
  const std::vector<RequestId> ids = InMidStream(1, 200, 5);
  clock->seconds += 2;  // results that came until now count once
  clock->AwaitTurns();
  const int before = *told;
  clock->seconds += 2;
  clock->AwaitTurns();
  EXPECT_EQ(*told, before);
  hub_->Hold(false);
  while (*told == before) {
    clock->seconds += 2;
    clock->AwaitTurns();
  }
  ExpectQuietTokens(ids[0], 10, 200);
}

TEST_F(EngineHostTest, DrainFinishesWhatWasAcceptedAndTakesNoMore) {
  Start();
  std::vector<RequestId> ids;
  for (int i = 0; i < 8; ++i) ids.push_back(Submit(Request(10, 100)));
  absl::Notification drained;
  engine_->Drain([&](bool all) {
    EXPECT_TRUE(all);
    drained.Notify();
  });
  EXPECT_THAT(engine_->Submit({Request(4, 4)}, ""),
              StatusIs(absl::StatusCode::kUnavailable));
  EXPECT_FALSE(engine_->GetStatus().ready);
  EXPECT_EQ(engine_->GetStatus().not_ready_reason, "draining");
  ASSERT_TRUE(drained.WaitForNotificationWithTimeout(kLong));
  for (RequestId id : ids) {
    EXPECT_EQ(listener_.Get(id).tokens.size(), 100u);
  }
  engine_->Stop();
  EXPECT_TRUE(hub_->shut_down());
  EXPECT_EQ(engine_->num_cut(), 0);
}

TEST_F(EngineHostTest, UndrainIsRefusedWhenTheGroupIsBeingStopped) {
  Start();
  engine_->DrainForGood([](bool) {});
  EXPECT_THAT(engine_->Undrain(),
              StatusIs(absl::StatusCode::kFailedPrecondition));
  EXPECT_TRUE(engine_->GetStatus().draining);
}

TEST_F(EngineHostTest, UndrainEndsTheWaitingAndTakesRequestsAgain) {
  Start();
  const RequestId id = InMidStream(1, 900, 2).front();
  absl::Notification ended;
  engine_->Drain([&](bool all) {
    EXPECT_FALSE(all);
    ended.Notify();
  });
  EXPECT_THAT(engine_->Submit({Request(4, 4)}, ""),
              StatusIs(absl::StatusCode::kUnavailable));
  EXPECT_THAT(engine_->Undrain(), IsOk());
  ASSERT_TRUE(ended.WaitForNotificationWithTimeout(kLong));
  EXPECT_TRUE(engine_->GetStatus().ready);
  EXPECT_THAT(engine_->Submit({Request(4, 4)}, ""), IsOk());
  hub_->Hold(false);
  EXPECT_EQ(listener_.AwaitEnd(id).finish, FinishReason::kLength);
}

TEST_F(EngineHostTest, StopEndsWhatIsRunning) {
  Start();
  const RequestId id = Submit(Request(10, 1000));
  listener_.AwaitTokens(id, 1);
  engine_->Stop();
  const auto finish = listener_.Get(id).finish;
  ASSERT_TRUE(finish.has_value());
  EXPECT_EQ(engine_->num_cut(), *finish == FinishReason::kAbort ? 1 : 0);
}

TEST_F(EngineHostTest, TheAutomaticChoiceFollowsTheLoad) {
  config_.layout.choice = LayoutChoice::kAuto;
  config_.layout.switch_threshold = 8;
  config_.layout.min_dwell_ms = 0;
  config_.layout.smoothing_ms = 0;
  Start();
  EXPECT_EQ(engine_->GetStatus().layout, TensorParallel(2));
  std::vector<RequestId> ids;
  for (int i = 0; i < 24; ++i) ids.push_back(Submit(Request(20, 500)));
  for (RequestId id : ids) {
    EXPECT_EQ(listener_.AwaitEnd(id).tokens,
              QuietRun(id.value, Request(20, 500).prompt, 500));
  }
  EXPECT_GE(engine_->GetStatus().switches_total, 1u);
}

// ---- layouts between -------------------------------------------------------

class LayoutsBetweenTest : public EngineHostTest {
 protected:
  void SetUp() override {
    EngineHostTest::SetUp();
    config_.workers.count = 8;  // with 4 KV heads
  }
  static constexpr LayoutChoice kTp2 = LayoutChoice::Of(Layout{2});
  static constexpr LayoutChoice kTp4 = LayoutChoice::Of(Layout{4});
};

TEST_F(LayoutsBetweenTest, StreamsGoOnThroughAllOfThem) {
  Start();
  std::vector<RequestId> ids;
  for (int i = 0; i < 12; ++i) ids.push_back(Submit(Request(10 + i, 900)));
  Layout before = ExpertParallel();
  for (const LayoutChoice choice :
       {kTp2, LayoutChoice::kTp, kTp4, LayoutChoice::kEp, kTp4, kTp2}) {
    const auto report = SwitchTo(choice);
    ASSERT_THAT(report, IsOk());
    EXPECT_TRUE(report->done) << report->reason;
    EXPECT_EQ(report->from, before);
    EXPECT_EQ(report->to, choice.LayoutIn(8));
    before = report->to;
  }
  for (int i = 0; i < 12; ++i) ExpectQuietTokens(ids[i], 10 + i, 900);
  const EngineStatus status = engine_->GetStatus();
  EXPECT_EQ(status.switches_total, 6u);
  EXPECT_EQ(status.layout, Layout{2});
  EXPECT_EQ(status.choice, kTp2);
  for (const SwitchTotals& one : status.totals.switches) {
    const bool never = one.from == ExpertParallel() && one.to == Layout{8};
    const bool back = one.from == Layout{8} && one.to == ExpertParallel();
    EXPECT_EQ(one.done, never || back ? 0u : 1u)
        << one.from.tp_size << " " << one.to.tp_size;
  }
}

TEST_F(LayoutsBetweenTest, OneThatTheGroupDoesNotHaveIsRefusedWithThoseItHas) {
  Start();
  const auto report = SwitchTo(LayoutChoice::Of(Layout{3}));
  EXPECT_THAT(report, StatusIs(absl::StatusCode::kInvalidArgument,
                               testing::HasSubstr("ep, tp2, tp4 and tp")));
  EXPECT_EQ(engine_->GetStatus().choice, LayoutChoice::kEp);
  EXPECT_FALSE(failed_.HasBeenNotified());
  ExpectQuietTokens(Submit(Request(20, 20)), 20, 20);
}

// Of 4 KV heads each is once in groups of four and twice in groups of eight.
TEST_F(LayoutsBetweenTest, StatusTellsTheRoomInEachCandidate) {
  config_.layout.candidates = {LayoutChoice::kEp, LayoutChoice::kTp, kTp4};
  Start();
  ASSERT_THAT(SwitchTo(kTp2), IsOk());
  const EngineStatus status = engine_->GetStatus();
  ASSERT_EQ(status.kv.size(), 4u);
  EXPECT_EQ(status.kv[0].layout, Layout{2});
  EXPECT_EQ(status.kv[1].layout, Layout{8});
  EXPECT_EQ(status.kv[1].copies, 2);
  EXPECT_EQ(status.kv[2].layout, Layout{4});
  EXPECT_EQ(status.kv[2].copies, 1);
  EXPECT_EQ(status.kv[3].layout, Layout{1});
  EXPECT_EQ(status.kv[1].tokens, FakeHub::kPages * kPageTokens);
  EXPECT_EQ(status.kv[2].tokens, 2 * status.kv[1].tokens);
}

TEST_F(LayoutsBetweenTest, TheAutomaticChoiceGoesAlongTheCandidates) {
  config_.layout.choice = LayoutChoice::kAuto;
  config_.layout.candidates = {LayoutChoice::kTp, kTp2};
  config_.layout.thresholds = {8};
  config_.layout.min_dwell_ms = 0;
  config_.layout.smoothing_ms = 0;
  Start();
  EXPECT_EQ(engine_->GetStatus().layout, Layout{8});
  std::vector<RequestId> ids;
  for (int i = 0; i < 24; ++i) ids.push_back(Submit(Request(20, 500)));
  for (RequestId id : ids) {
    EXPECT_EQ(listener_.AwaitEnd(id).tokens,
              QuietRun(id.value, Request(20, 500).prompt, 500));
  }
  const EngineStatus status = engine_->GetStatus();
  EXPECT_GE(status.switches_total, 1u);
  for (const SwitchTotals& one : status.totals.switches) {
    EXPECT_NE(one.to, ExpertParallel());
  }
}

}  // namespace
}  // namespace moebius
