// Workers die, hang and lose messages: nothing is lost, and every request's
// tokens are those of a quiet run, whatever happens in between.
#include <string>
#include <utility>
#include <vector>

#include "common/base/logging.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/unit/coordinator/engine/engine_host_fixture.h"

namespace moebius {
namespace {

using testing::HasSubstr;

TEST_F(EngineHostTest, AWorkerThatFailsIsReplacedAndNoTokenChanges) {
  Start();
  const RequestId id = InMidStream(1, 300, 5).front();
  hub_->SendFault("coordinator and worker disagree");
  hub_->Hold(false);
  AwaitReplaced(1, 1);
  hub_->Kill(1);
  hub_->Revive(1);
  ExpectQuietTokens(id, 10, 300);
}

TEST_F(EngineHostTest, AGroupBeginsAnewOnlyOnceThatIsWritten) {
  auto opened = Journal::Open({.checkpoint = 1, .salt = 1}, disk_);
  ASSERT_THAT(opened, IsOk());
  journal_ = std::move(opened->journal);
  ASSERT_THAT(journal_->Append(journal::TermBegun{Term{1}}), IsOk());
  ASSERT_THAT(journal_->Commit(), IsOk());
  disk_.FailFrom(disk_.calls(), absl::ResourceExhaustedError("full"),
                 /*num_calls=*/2);
  Start();
  EXPECT_TRUE(healthy_when_ready_);
  ExpectQuietTokens(Submit(Request(10, 20)), 10, 20);
}

// One that an earlier coordinator had accepted ends with an error, whether this
// coordinator sees what is wrong or the workers do.
class JournalledEngineHostTest : public EngineHostTest {
 protected:
  // The end that the journal gives to a request with a token that the model
  // does not have.
  void ExpectError(const std::string& reason) {
    auto opened = Journal::Open({.checkpoint = 1, .salt = 1}, disk_);
    ASSERT_THAT(opened, IsOk());
    journal_ = std::move(opened->journal);
    journal::Accepted accepted;
    Generation bad = Request(10, 20);
    bad.prompt[3] = kSimulatedVocabulary;
    accepted.generations = {{RequestId{1}, bad}};
    ASSERT_THAT(journal_->Append(journal::TermBegun{Term{1}}), IsOk());
    ASSERT_THAT(journal_->Append(accepted), IsOk());
    ASSERT_THAT(journal_->Commit(), IsOk());
    Start();
    ExpectQuietTokens(Submit(Request(10, 20)), 10, 20);
    absl::Notification told;
    engine_->Attach({RequestId{1}}, [&](auto outputs) {
      ASSERT_THAT(outputs, IsOk());
      ASSERT_EQ(outputs->size(), 1u);
      EXPECT_EQ(outputs->front().finish, FinishReason::kError);
      EXPECT_EQ(outputs->front().stop_reason, reason);
      told.Notify();
    });
    EXPECT_TRUE(told.WaitForNotificationWithTimeout(kLong));
    EXPECT_FALSE(failed_.HasBeenNotified());
  }
};

TEST_F(JournalledEngineHostTest, TheWorkersRefuseIt) { ExpectError(kRefusal); }

TEST_F(JournalledEngineHostTest, TheCoordinatorRefusesIt) {
  vocab_size_ = kSimulatedVocabulary;
  ExpectError("token 1000 at position 3; the model has the ids 0 to 999");
}

TEST_F(EngineHostTest, StreamsSurviveTheDeathOfAWorker) {
  Start();
  const std::vector<RequestId> ids = InMidStream(12, 400, 5);
  hub_->KillAfterSteps(0, 20);
  hub_->Hold(false);
  for (Rank rank : {0, 1, 0, 1, 0, 1, 0, 1}) {
    hub_->AwaitLost(rank);
    hub_->KillAfterSteps(1 - rank, 20);
    hub_->Revive(rank);
  }
  // The ninth, which the last of those set off.
  hub_->AwaitLost(0);
  hub_->Revive(0);
  for (int i = 0; i < 12; ++i) ExpectQuietTokens(ids[i], 10 + i, 400);
  EXPECT_EQ(engine_->GetStatus().preemptions_total, 0u);
  EXPECT_EQ(engine_->GetStatus().recoveries_total, 9u);
}

TEST_F(EngineHostTest, RequestsAreAcceptedWhileAWorkerIsAway) {
  Start();
  const RequestId before = InMidStream(1, 500, 5).front();
  hub_->Kill(1);
  const RequestId meanwhile = Submit(Request(7, 50));
  hub_->Hold(false);
  AwaitReplaced(1, 1);
  hub_->Revive(1);
  ExpectQuietTokens(before, 10, 500);
  ExpectQuietTokens(meanwhile, 7, 50);
}

TEST_F(EngineHostTest, AllWorkersMayDieAtOnce) {
  Start();
  const RequestId id = InMidStream(1, 500, 5).front();
  hub_->Kill(0);
  hub_->Kill(1);
  hub_->Hold(false);
  hub_->Revive(1);
  hub_->Revive(0);
  ExpectQuietTokens(id, 10, 500);
}

TEST_F(EngineHostTest, ARankWhoseMemoryIsGoneLoadsAndIsComputedAgain) {
  Start();
  EXPECT_EQ(hub_->num_loads(), 2);
  // All at once, so that both ranks get four.
  const std::vector<RequestId> ids = InMidStream(8, 400, 5);
  hub_->Kill(1);
  hub_->ReviveEmpty(1);
  hub_->Hold(false);
  for (int i = 0; i < 8; ++i) ExpectQuietTokens(ids[i], 10 + i, 400);
  EXPECT_EQ(hub_->num_loads(), 3);
  // Those of the other rank have kept what they had.
  EXPECT_EQ(engine_->GetStatus().preemptions_total, 4u);
  EXPECT_GT(engine_->GetStatus().dropped_tokens_total, 0u);
}

TEST_F(EngineHostTest, MemoryThatIsGoneInACommittedSwitchComesBackInItsMiddle) {
  Start();
  const std::vector<RequestId> ids = InMidStream(8, 400, 5);
  hub_->KillAtNextCommit();
  const auto asked = Ask(LayoutChoice::kTp);
  hub_->Hold(false);
  hub_->AwaitLost(1);
  hub_->ReviveEmpty(1);
  const auto report = asked->Await();
  ASSERT_THAT(report, IsOk());
  EXPECT_TRUE(report->done);
  EXPECT_EQ(hub_->num_loads(), 3);
  for (int i = 0; i < 8; ++i) ExpectQuietTokens(ids[i], 10 + i, 400);
}

TEST_F(EngineHostTest, ADeathWhilePreparingEndsTheAttemptInTheOldLayout) {
  Start();
  const RequestId id = InMidStream(1, 900, 5).front();
  hub_->KillAtNextPrepare();
  const auto asked = Ask(LayoutChoice::kTp);
  hub_->Hold(false);
  hub_->AwaitLost(1);
  hub_->Revive(1);
  const auto report = asked->Await();
  ASSERT_THAT(report, IsOk());
  EXPECT_FALSE(report->done);
  EXPECT_THAT(report->reason, HasSubstr("halted"));
  EXPECT_EQ(hub_->num_tails(), 0);
  const auto again = SwitchTo(LayoutChoice::kTp);
  ASSERT_THAT(again, IsOk());
  EXPECT_TRUE(again->done);
  ExpectQuietTokens(id, 10, 900);
}

TEST_F(EngineHostTest, ADeathAfterTheCommitRollsForward) {
  Start();
  const RequestId id = InMidStream(1, 900, 5).front();
  hub_->KillAtNextCommit();
  const auto asked = Ask(LayoutChoice::kTp);
  hub_->Hold(false);
  hub_->AwaitLost(1);
  hub_->Revive(1);
  const auto report = asked->Await();
  ASSERT_THAT(report, IsOk());
  EXPECT_TRUE(report->done);
  EXPECT_EQ(hub_->num_tails(), 1);
  EXPECT_EQ(engine_->GetStatus().layout, TensorParallel(2));
  ExpectQuietTokens(id, 10, 900);
}

TEST_F(EngineHostTest, ALostReportCostsARoundOfRecovery) {
  config_.workers.stall_timeout_ms = 100;  // it may have been the last one
  Start();
  const RequestId id = InMidStream(1, 900, 2).front();
  hub_->LoseNextReport();
  hub_->Hold(false);
  ExpectQuietTokens(id, 10, 900);
  EXPECT_GE(engine_->GetStatus().recoveries_total, 1u);
}

TEST_F(EngineHostTest, ResultsThatAreLostRightAfterASwitchAreMissed) {
  config_.workers.stall_timeout_ms = 100;
  Start();
  const RequestId id = InMidStream(1, 900, 2).front();
  // All that are under way: nothing that follows shows the gap.
  hub_->LoseResultsAfterSwitch(config_.scheduler.steps_ahead);
  const auto asked = Ask(LayoutChoice::kTp);
  hub_->Hold(false);
  const auto report = asked->Await();
  ASSERT_THAT(report, IsOk());
  EXPECT_TRUE(report->done);
  ExpectQuietTokens(id, 10, 900);
}

// The same, but the worker's connection was lost with them: nobody waits for
// the stall to be seen.
TEST_F(EngineHostTest, AWorkerThatConnectsAgainCostsARoundOfRecovery) {
  Start();
  const RequestId id = InMidStream(1, 900, 2).front();
  hub_->BreakConnection(config_.scheduler.steps_ahead);
  hub_->Hold(false);
  ExpectQuietTokens(id, 10, 900);
  EXPECT_EQ(engine_->GetStatus().recoveries_total, 1u);
}

TEST_F(EngineHostTest, AWorkerThatDoesNotHaltIsReplaced) {
  config_.workers.step_timeout_ms = 10;
  config_.workers.stall_timeout_ms = 100;
  Start();
  const RequestId id = InMidStream(1, 900, 2).front();
  hub_->Deafen(0);  // nothing is obeyed any more
  hub_->Hold(false);
  AwaitReplaced(0, 1);
  EXPECT_FALSE(listener_.Get(id).finish.has_value());
}

TEST_F(EngineHostTest, AnOrderToLoadThatWasLostIsGivenAgain) {
  Start(/*join=*/false);
  hub_->LoseNextLoad();
  hub_->Join();
  EXPECT_TRUE(ready_.WaitForNotificationWithTimeout(kLong));
}

TEST_F(EngineHostTest, WhoLoadsSlowlyAnswersOftenAndIsSaidToHaveLoadedOnce) {
  StartLogging("test");
  testing::internal::CaptureStderr();
  Start(/*join=*/false);
  hub_->LoadSlowly();
  hub_->Join();
  EXPECT_TRUE(ready_.WaitForNotificationWithTimeout(kLong));
  // All answers have been taken by now, the second ones too.
  const RequestId id = Submit(Request(20, 50));
  listener_.AwaitEnd(id);
  const std::string log = testing::internal::GetCapturedStderr();
  for (const char* line : {"worker 0 has 1000 bytes of weights",
                           "worker 1 has 1000 bytes of weights"}) {
    const size_t first = log.find(line);
    ASSERT_NE(first, std::string::npos) << log;
    EXPECT_EQ(log.find(line, first + 1), std::string::npos) << log;
  }
}

// Nothing else tells of a worker that has missed its Resume: no step is out.
TEST_F(EngineHostTest, AWorkerThatDoesNotAnswerPrepareIsHalted) {
  config_.workers.step_timeout_ms = 10;
  config_.layout.prepare_timeout_ms = 50;
  Start();
  hub_->Deafen(0);
  const auto report = SwitchTo(LayoutChoice::kTp);
  ASSERT_THAT(report, IsOk());
  EXPECT_FALSE(report->done);
  AwaitReplaced(0, 1);
}

TEST_F(EngineHostTest, RepeatedReportsAreTakenOnce) {
  Start();
  hub_->RepeatReports();
  const RequestId id = Submit(Request(20, 50));
  EXPECT_EQ(listener_.AwaitEnd(id).tokens,
            QuietRun(id.value, Request(20, 50).prompt, 50));
  const auto report = SwitchTo(LayoutChoice::kTp);
  ASSERT_THAT(report, IsOk());
  EXPECT_TRUE(report->done);
}

}  // namespace
}  // namespace moebius
