// The engine with a simulated group behind it: nothing is lost, and every
// request's tokens are those of a quiet run, whatever happens in between.
#include "coordinator/engine_host.h"

#include <algorithm>
#include <cstdlib>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/synchronization/mutex.h"
#include "absl/synchronization/notification.h"
#include "absl/time/time.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/status_matchers.h"
#include "tests/unit/engine/fake_hub.h"

namespace moebius {
namespace {

using testing::HasSubstr;

constexpr absl::Duration kLong = absl::Seconds(60);

// What the front has heard.
class Listener {
 public:
  struct Stream {
    std::vector<int32_t> tokens;
    std::string text;
    std::vector<PromptLogprob> prompt_logprobs;
    std::optional<FinishReason> finish;
    std::string stop_reason;
  };

  void Hear(const std::vector<Output>& outputs) {
    absl::MutexLock lock(&mutex_);
    for (const Output& output : outputs) {
      Stream& stream = streams_[output.request.value];
      EXPECT_FALSE(stream.finish.has_value()) << "output after the end";
      for (const SampledToken& token : output.tokens) {
        stream.tokens.push_back(token.token);
      }
      stream.text += output.text;
      for (const PromptLogprob& logprob : output.prompt_logprobs) {
        stream.prompt_logprobs.push_back(logprob);
      }
      stream.finish = output.finish;
      stream.stop_reason = output.stop_reason;
      ++heard_;
    }
  }

  Stream AwaitEnd(RequestId request) {
    absl::MutexLock lock(&mutex_);
    const auto ended = [&]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
      return streams_[request.value].finish.has_value();
    };
    EXPECT_TRUE(mutex_.AwaitWithTimeout(absl::Condition(&ended), kLong))
        << "request " << request.value << " never ended";
    return streams_[request.value];
  }

  void AwaitTokens(RequestId request, size_t count) {
    absl::MutexLock lock(&mutex_);
    const auto enough = [&]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
      return streams_[request.value].tokens.size() >= count;
    };
    EXPECT_TRUE(mutex_.AwaitWithTimeout(absl::Condition(&enough), kLong));
  }

  Stream Get(RequestId request) {
    absl::MutexLock lock(&mutex_);
    return streams_[request.value];
  }

 private:
  absl::Mutex mutex_;
  std::map<uint64_t, Stream> streams_ ABSL_GUARDED_BY(mutex_);
  int heard_ ABSL_GUARDED_BY(mutex_) = 0;
};

const Tokenizer& TestTokenizer() {
  static const Tokenizer* tokenizer = [] {
    const char* source = std::getenv("MOEBIUS_SOURCE_DIR");
    auto loaded =
        Tokenizer::Load(std::string(source == nullptr ? "." : source) +
                        "/models/verse-moe/tokenizer.json");
    EXPECT_THAT(loaded, IsOk());
    return loaded->release();
  }();
  return *tokenizer;
}

class EngineHostTest : public testing::Test {
 protected:
  void SetUp() override {
    config_.num_workers = 2;
    config_.max_running = 32;
    config_.max_queue = 64;
    config_.token_budget = 64;
    config_.layout = LayoutChoice::kEp;
  }

  void Start(bool join = true) {
    SchedulerOptions workers;
    workers.attention = {config_.num_workers, 8, 4};
    workers.layout = InitialLayout(config_);
    workers.max_running = config_.max_running;
    workers.token_budget = config_.token_budget;
    workers.max_model_len = 1024;
    workers.pages_per_rank.assign(config_.num_workers, FakeHub::kPages);
    auto hub = std::make_unique<FakeHub>(workers);
    hub_ = hub.get();
    EngineOptions options;
    options.served_before = served_before_;
    options.config = config_;
    options.model.num_q_heads = 8;
    options.model.num_kv_heads = 4;
    options.max_model_len = 1024;
    options.tokenizer = &TestTokenizer();
    options.listener = [this](std::vector<Output> o) { listener_.Hear(o); };
    options.on_ready = [this] { ready_.Notify(); };
    options.replace_worker = [this](Rank rank, Incarnation incarnation) {
      absl::MutexLock lock(&replaced_mutex_);
      replaced_.emplace_back(rank, incarnation.value);
    };
    options.on_failed = [this](absl::Status status) {
      failure_ = status;
      failed_.Notify();
    };
    engine_ = std::make_unique<EngineHost>(std::move(options), std::move(hub));
    engine_->Start();
    if (join) {
      hub_->Join();
      ASSERT_TRUE(ready_.WaitForNotificationWithTimeout(kLong));
    }
  }

  static Generation Request(int prompt, int max_tokens) {
    Generation generation;
    for (int i = 0; i < prompt; ++i) generation.prompt.push_back(i * 7 % 1000);
    generation.stop.max_tokens = max_tokens;
    return generation;
  }

  RequestId Submit(Generation generation) {
    std::vector<Generation> one;
    one.push_back(std::move(generation));
    auto ids = engine_->Submit(std::move(one), "");
    EXPECT_THAT(ids, IsOk());
    return ids.ok() ? ids->front() : RequestId{};
  }

  absl::StatusOr<SwitchReport> SwitchTo(LayoutChoice choice) {
    absl::Notification answered;
    absl::StatusOr<SwitchReport> answer = absl::UnknownError("no answer");
    engine_->SetLayout(choice, [&](absl::StatusOr<SwitchReport> report) {
      answer = std::move(report);
      answered.Notify();
    });
    EXPECT_TRUE(answered.WaitForNotificationWithTimeout(kLong));
    return answer;
  }

  void AwaitReplaced(Rank rank, uint64_t incarnation) {
    absl::MutexLock lock(&replaced_mutex_);
    const auto asked = [&]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(replaced_mutex_) {
      return std::count(replaced_.begin(), replaced_.end(),
                        std::pair(rank, incarnation)) > 0;
    };
    EXPECT_TRUE(
        replaced_mutex_.AwaitWithTimeout(absl::Condition(&asked), kLong));
  }
  void ExpectQuietTokens(RequestId id, int prompt, int count) {
    EXPECT_EQ(listener_.AwaitEnd(id).tokens,
              QuietRun(id.value, Request(prompt, count).prompt, count));
  }

  bool served_before_ = false;
  Config config_;
  Listener listener_;
  absl::Mutex replaced_mutex_;
  std::vector<std::pair<Rank, uint64_t>> replaced_
      ABSL_GUARDED_BY(replaced_mutex_);
  absl::Notification ready_, failed_;
  absl::Status failure_;
  FakeHub* hub_ = nullptr;
  std::unique_ptr<EngineHost> engine_;
};

TEST_F(EngineHostTest, NothingIsAcceptedBeforeTheGroupIsWhole) {
  Start(/*join=*/false);
  EXPECT_THAT(engine_->Submit({Request(4, 4)}, ""),
              StatusIs(absl::StatusCode::kUnavailable, HasSubstr("waiting")));
  EXPECT_THAT(SwitchTo(LayoutChoice::kTp),
              StatusIs(absl::StatusCode::kUnavailable));
  EXPECT_FALSE(engine_->GetStatus().ready);
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
  EXPECT_THAT(engine_->Submit({Request(1024, 1)}, ""),
              StatusIs(absl::StatusCode::kInvalidArgument,
                       testing::AllOf(HasSubstr("1024"), HasSubstr("1023"))));
  EXPECT_THAT(engine_->Submit({Generation{}}, ""),
              StatusIs(absl::StatusCode::kInvalidArgument));
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
  hub_->Wake();
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
  const RequestId id = Submit(Request(8, 1000));
  const RequestId other = Submit(Request(8, 50));
  listener_.AwaitTokens(id, 3);
  engine_->Abort(id);
  engine_->Abort(RequestId{999});
  EXPECT_EQ(listener_.AwaitEnd(other).tokens.size(), 50u);
  // Another request after it proves that the engine has seen the abort.
  listener_.AwaitEnd(Submit(Request(4, 2)));
  EXPECT_FALSE(listener_.Get(id).finish.has_value());
  EXPECT_EQ(engine_->GetStatus().requests_aborted, 1u);
}

TEST_F(EngineHostTest, SwitchesInMidStreamChangeNoToken) {
  Start();
  std::vector<RequestId> ids;
  for (int i = 0; i < 12; ++i) ids.push_back(Submit(Request(30 + i, 400)));
  listener_.AwaitTokens(ids[0], 5);
  for (int i = 0; i < 6; ++i) {
    const auto choice = i % 2 == 0 ? LayoutChoice::kTp : LayoutChoice::kEp;
    const auto report = SwitchTo(choice);
    ASSERT_THAT(report, IsOk());
    EXPECT_TRUE(report->done) << report->reason;
    EXPECT_EQ(report->weight_bytes, 2000u);
    EXPECT_EQ(report->to.tp_size, i % 2 == 0 ? 2 : 1);
  }
  for (int i = 0; i < 12; ++i) {
    EXPECT_EQ(listener_.AwaitEnd(ids[i]).tokens,
              QuietRun(ids[i].value, Request(30 + i, 400).prompt, 400));
  }
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

TEST_F(EngineHostTest, ARefusedSwitchGivesTheReasonAndStreamsGoOn) {
  Start();
  const RequestId id = Submit(Request(20, 300));
  listener_.AwaitTokens(id, 2);
  hub_->RefuseNextPrepare("no room");
  const auto report = SwitchTo(LayoutChoice::kTp);
  ASSERT_THAT(report, IsOk());
  EXPECT_FALSE(report->done);
  EXPECT_THAT(report->reason, HasSubstr("no room"));
  EXPECT_EQ(listener_.AwaitEnd(id).tokens,
            QuietRun(id.value, Request(20, 300).prompt, 300));
  // And the next one works.
  const auto again = SwitchTo(LayoutChoice::kTp);
  ASSERT_THAT(again, IsOk());
  EXPECT_TRUE(again->done);
  EXPECT_EQ(engine_->GetStatus().switches_refused_total, 1u);
}

TEST_F(EngineHostTest, WeightsThatCameOutDifferentEndTheGroup) {
  Start();
  const RequestId id = Submit(Request(20, 900));
  listener_.AwaitTokens(id, 2);
  hub_->CorruptNextSwitch();
  engine_->SetLayout(LayoutChoice::kTp, [](absl::StatusOr<SwitchReport>) {});
  ASSERT_TRUE(failed_.WaitForNotificationWithTimeout(kLong));
  EXPECT_THAT(failure_, StatusIs(absl::StatusCode::kDataLoss,
                                 HasSubstr("expert weights")));
  EXPECT_EQ(listener_.AwaitEnd(id).finish, FinishReason::kAbort);
  EXPECT_THAT(engine_->Submit({Request(4, 4)}, ""),
              StatusIs(absl::StatusCode::kUnavailable));
}

TEST_F(EngineHostTest, WeightsThatCannotBeLoadedEndTheGroupWithTheReason) {
  Start(/*join=*/false);
  hub_->FailLoads("no such file");
  hub_->Join();
  ASSERT_TRUE(failed_.WaitForNotificationWithTimeout(kLong));
  EXPECT_THAT(failure_,
              StatusIs(absl::StatusCode::kInternal, HasSubstr("no such file")));
}

TEST_F(EngineHostTest, AWorkerThatFailsIsReplacedAndNoTokenChanges) {
  Start();
  const RequestId id = Submit(Request(20, 300));
  listener_.AwaitTokens(id, 5);
  hub_->SendFault("coordinator and worker disagree");
  AwaitReplaced(1, 1);
  hub_->Kill(1);
  hub_->Revive(1);
  ExpectQuietTokens(id, 20, 300);
}

TEST_F(EngineHostTest, AWorkerThatFailsBeforeANewCoordinatorServesIsReplaced) {
  served_before_ = true;
  Start(/*join=*/false);
  hub_->FailLoads("its memory is another's");
  hub_->Join();
  AwaitReplaced(1, 1);
  EXPECT_FALSE(failed_.HasBeenNotified());
}

TEST_F(EngineHostTest, StreamsSurviveTheDeathOfAWorker) {
  Start();
  std::vector<RequestId> ids;
  for (int i = 0; i < 12; ++i) ids.push_back(Submit(Request(10 + i, 400)));
  for (size_t round = 0; round < 8; ++round) {
    // Its next tokens come after the recovery before.
    listener_.AwaitTokens(ids[round],
                          listener_.Get(ids[round]).tokens.size() + 20);
    const Rank rank = static_cast<Rank>(round % 2);
    hub_->Kill(rank);
    hub_->Revive(rank);
  }
  for (int i = 0; i < 12; ++i) ExpectQuietTokens(ids[i], 10 + i, 400);
  EXPECT_EQ(engine_->GetStatus().preemptions_total, 0u);
  EXPECT_GE(engine_->GetStatus().recoveries_total, 8u);
}

TEST_F(EngineHostTest, RequestsAreAcceptedWhileAWorkerIsAway) {
  Start();
  const RequestId before = Submit(Request(20, 500));
  listener_.AwaitTokens(before, 5);
  hub_->Kill(1);
  const RequestId meanwhile = Submit(Request(7, 50));
  AwaitReplaced(1, 1);
  hub_->Revive(1);
  ExpectQuietTokens(before, 20, 500);
  ExpectQuietTokens(meanwhile, 7, 50);
}

TEST_F(EngineHostTest, AllWorkersMayDieAtOnce) {
  Start();
  const RequestId id = Submit(Request(20, 500));
  listener_.AwaitTokens(id, 5);
  hub_->Kill(0);
  hub_->Kill(1);
  hub_->Revive(1);
  hub_->Revive(0);
  ExpectQuietTokens(id, 20, 500);
}

TEST_F(EngineHostTest, ARankWhoseMemoryIsGoneLoadsAndIsComputedAgain) {
  Start();
  EXPECT_EQ(hub_->num_loads(), 2);
  // All at once, so that both ranks get four.
  std::vector<Generation> requests;
  for (int i = 0; i < 8; ++i) requests.push_back(Request(10 + i, 400));
  const auto submitted = engine_->Submit(std::move(requests), "");
  ASSERT_THAT(submitted, IsOk());
  const std::vector<RequestId>& ids = *submitted;
  for (const RequestId id : ids) listener_.AwaitTokens(id, 5);
  hub_->Kill(1);
  hub_->ReviveEmpty(1);
  for (int i = 0; i < 8; ++i) ExpectQuietTokens(ids[i], 10 + i, 400);
  EXPECT_EQ(hub_->num_loads(), 3);
  // Those of the other rank have kept what they had.
  EXPECT_EQ(engine_->GetStatus().preemptions_total, 4u);
  EXPECT_GT(engine_->GetStatus().dropped_tokens_total, 0u);
}

TEST_F(EngineHostTest, MemoryThatIsGoneInACommittedSwitchComesBackInItsMiddle) {
  Start();
  std::vector<RequestId> ids;
  for (int i = 0; i < 8; ++i) ids.push_back(Submit(Request(10 + i, 400)));
  for (const RequestId id : ids) listener_.AwaitTokens(id, 5);
  hub_->KillAtNextCommit();
  absl::Notification answered;
  absl::StatusOr<SwitchReport> report = absl::UnknownError("");
  engine_->SetLayout(LayoutChoice::kTp, [&](absl::StatusOr<SwitchReport> r) {
    report = std::move(r);
    answered.Notify();
  });
  hub_->AwaitLost(1);
  hub_->ReviveEmpty(1);
  ASSERT_TRUE(answered.WaitForNotificationWithTimeout(kLong));
  ASSERT_THAT(report, IsOk());
  EXPECT_TRUE(report->done);
  EXPECT_EQ(hub_->num_loads(), 3);
  for (int i = 0; i < 8; ++i) ExpectQuietTokens(ids[i], 10 + i, 400);
}

TEST_F(EngineHostTest, ADeathWhilePreparingEndsTheAttemptInTheOldLayout) {
  Start();
  const RequestId id = Submit(Request(20, 900));
  listener_.AwaitTokens(id, 5);
  hub_->KillAtNextPrepare();
  absl::Notification answered;
  absl::StatusOr<SwitchReport> report = absl::UnknownError("");
  engine_->SetLayout(LayoutChoice::kTp, [&](absl::StatusOr<SwitchReport> r) {
    report = std::move(r);
    answered.Notify();
  });
  hub_->AwaitLost(1);
  hub_->Revive(1);
  ASSERT_TRUE(answered.WaitForNotificationWithTimeout(kLong));
  ASSERT_THAT(report, IsOk());
  EXPECT_FALSE(report->done);
  EXPECT_THAT(report->reason, HasSubstr("halted"));
  EXPECT_EQ(hub_->num_tails(), 0);
  const auto again = SwitchTo(LayoutChoice::kTp);
  ASSERT_THAT(again, IsOk());
  EXPECT_TRUE(again->done);
  ExpectQuietTokens(id, 20, 900);
}

TEST_F(EngineHostTest, ADeathAfterTheCommitRollsForward) {
  Start();
  const RequestId id = Submit(Request(20, 900));
  listener_.AwaitTokens(id, 5);
  hub_->KillAtNextCommit();
  absl::Notification answered;
  absl::StatusOr<SwitchReport> report = absl::UnknownError("");
  engine_->SetLayout(LayoutChoice::kTp, [&](absl::StatusOr<SwitchReport> r) {
    report = std::move(r);
    answered.Notify();
  });
  hub_->AwaitLost(1);
  hub_->Revive(1);
  ASSERT_TRUE(answered.WaitForNotificationWithTimeout(kLong));
  ASSERT_THAT(report, IsOk());
  EXPECT_TRUE(report->done);
  EXPECT_EQ(hub_->num_tails(), 1);
  EXPECT_EQ(engine_->GetStatus().layout, TensorParallel(2));
  ExpectQuietTokens(id, 20, 900);
}

TEST_F(EngineHostTest, ALostReportCostsARoundOfRecovery) {
  config_.stall_timeout_ms = 100;  // it may have been the last one
  Start();
  const RequestId id = Submit(Request(20, 900));
  listener_.AwaitTokens(id, 2);
  hub_->LoseNextReport();
  ExpectQuietTokens(id, 20, 900);
  EXPECT_GE(engine_->GetStatus().recoveries_total, 1u);
}

TEST_F(EngineHostTest, ResultsThatAreLostRightAfterASwitchAreMissed) {
  config_.stall_timeout_ms = 100;
  Start();
  const RequestId id = Submit(Request(20, 900));
  listener_.AwaitTokens(id, 2);
  // All that are under way: nothing that follows shows the gap.
  hub_->LoseResultsAfterSwitch(config_.steps_ahead);
  const auto report = SwitchTo(LayoutChoice::kTp);
  ASSERT_THAT(report, IsOk());
  EXPECT_TRUE(report->done);
  ExpectQuietTokens(id, 20, 900);
}

// The same, but the worker's connection was lost with them: nobody waits for
// the stall to be seen.
TEST_F(EngineHostTest, AWorkerThatConnectsAgainCostsARoundOfRecovery) {
  Start();
  const RequestId id = Submit(Request(20, 900));
  listener_.AwaitTokens(id, 2);
  hub_->BreakConnection(config_.steps_ahead);
  ExpectQuietTokens(id, 20, 900);
  EXPECT_EQ(engine_->GetStatus().recoveries_total, 1u);
}

TEST_F(EngineHostTest, AWorkerThatDoesNotHaltIsReplaced) {
  config_.step_timeout_ms = 10;
  config_.stall_timeout_ms = 100;
  Start();
  const RequestId id = Submit(Request(20, 900));
  listener_.AwaitTokens(id, 2);
  hub_->Deafen(0);  // nothing is obeyed any more
  AwaitReplaced(0, 1);
  EXPECT_FALSE(listener_.Get(id).finish.has_value());
}

TEST_F(EngineHostTest, AnOrderToLoadThatWasLostIsGivenAgain) {
  Start(/*join=*/false);
  hub_->LoseNextLoad();
  hub_->Join();
  EXPECT_TRUE(ready_.WaitForNotificationWithTimeout(kLong));
}

// Nothing else tells of a worker that has missed its Resume: no step is out.
TEST_F(EngineHostTest, AWorkerThatDoesNotAnswerPrepareIsHalted) {
  config_.step_timeout_ms = 10;
  config_.prepare_timeout_ms = 50;
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

TEST_F(EngineHostTest, DrainFinishesWhatWasAcceptedAndTakesNoMore) {
  Start();
  std::vector<RequestId> ids;
  for (int i = 0; i < 8; ++i) ids.push_back(Submit(Request(10, 100)));
  absl::Notification drained;
  engine_->Drain([&] { drained.Notify(); });
  EXPECT_THAT(engine_->Submit({Request(4, 4)}, ""),
              StatusIs(absl::StatusCode::kUnavailable));
  ASSERT_TRUE(drained.WaitForNotificationWithTimeout(kLong));
  for (RequestId id : ids) {
    EXPECT_EQ(listener_.Get(id).tokens.size(), 100u);
  }
  engine_->Stop();
  EXPECT_TRUE(hub_->shut_down());
}

TEST_F(EngineHostTest, StopEndsWhatIsRunning) {
  Start();
  const RequestId id = Submit(Request(10, 1000));
  listener_.AwaitTokens(id, 1);
  engine_->Stop();
  const auto finish = listener_.Get(id).finish;
  ASSERT_TRUE(finish.has_value());
}

TEST_F(EngineHostTest, TheAutomaticChoiceFollowsTheLoad) {
  config_.layout = LayoutChoice::kAuto;
  config_.switch_threshold = 8;
  config_.min_dwell_ms = 0;
  config_.smoothing_ms = 0;
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

}  // namespace
}  // namespace moebius
