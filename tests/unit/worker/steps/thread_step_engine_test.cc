// Steps on a thread: their order, what an error drops, what is waited for.
#include "worker/steps/thread_step_engine.h"

#include <poll.h>

#include <memory>
#include <thread>
#include <utility>
#include <vector>

#include "absl/synchronization/mutex.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/status_matchers.h"

namespace moebius {
namespace {

using testing::ElementsAre;
using Tell = ThreadStepEngine::Tell;

constexpr int kLongMs = 20'000;

// Runs a step once it may, and fails those that it is told to.
class GatedRunner final : public StepRunner {
 public:
  absl::StatusOr<StepResult> Run(Batch batch) override {
    absl::MutexLock lock(&mutex_);
    begun_.push_back(batch.step.value);
    mutex_.Await(absl::Condition(
        +[](GatedRunner* self) { return self->allowed_ > 0; }, this));
    --allowed_;
    ++ended_;
    if (batch.step == failing_) return absl::AbortedError("told to");
    StepResult result;
    result.step = batch.step;
    return result;
  }
  void Allow(int steps) {
    absl::MutexLock lock(&mutex_);
    allowed_ += steps;
  }
  void Fail(uint64_t step) {
    absl::MutexLock lock(&mutex_);
    failing_ = StepId{step};
  }
  size_t num_ended() {
    absl::MutexLock lock(&mutex_);
    return ended_;
  }
  // The steps that have begun, once there are so many.
  std::vector<uint64_t> Begun(size_t many) {
    absl::MutexLock lock(&mutex_);
    many_ = many;
    mutex_.Await(absl::Condition(
        +[](GatedRunner* self) { return self->begun_.size() >= self->many_; },
        this));
    return begun_;
  }

 private:
  absl::Mutex mutex_;
  int allowed_ = 0;
  size_t many_ = 0;
  size_t ended_ = 0;
  StepId failing_;
  std::vector<uint64_t> begun_;
};

class ThreadStepEngineTest : public testing::Test {
 protected:
  void Make(Tell tell) {
    auto made = ThreadStepEngine::Create(&runner_, tell);
    ASSERT_THAT(made, IsOk());
    engine_ = *std::move(made);
  }
  void Issue(uint64_t first, uint64_t last) {
    for (uint64_t step = first; step <= last; ++step) {
      Batch batch;
      batch.step = StepId{step};
      engine_->Issue(std::move(batch));
    }
  }
  bool Readable(int timeout_ms) {
    pollfd waits{engine_->completion_fd(), POLLIN, 0};
    return ::poll(&waits, 1, timeout_ms) == 1;
  }
  std::vector<uint64_t> CollectAll() {
    std::vector<uint64_t> steps;
    while (const auto end = engine_->Collect()) {
      EXPECT_THAT(end->status, IsOk());
      steps.push_back(end->result.step.value);
    }
    return steps;
  }

  GatedRunner runner_;
  std::unique_ptr<ThreadStepEngine> engine_;
};

TEST_F(ThreadStepEngineTest, IssueAndCollectDoNotWait) {
  Make(Tell::kEachStep);
  Issue(1, 3);
  EXPECT_THAT(runner_.Begun(1), ElementsAre(1));
  EXPECT_FALSE(engine_->Collect().has_value());
  EXPECT_FALSE(Readable(0));
  runner_.Allow(3);
}

TEST_F(ThreadStepEngineTest, StepsRunOneAfterTheOtherInTheirOrder) {
  Make(Tell::kEachStep);
  runner_.Allow(20);
  Issue(1, 20);
  engine_->Drain();
  EXPECT_EQ(runner_.Begun(20), CollectAll());
  EXPECT_EQ(runner_.Begun(20).back(), 20u);
}

TEST_F(ThreadStepEngineTest, AnErrorDropsWhatWasIssuedBehindIt) {
  Make(Tell::kErrors);
  runner_.Fail(2);
  runner_.Allow(10);
  Issue(1, 4);
  engine_->Drain();
  Issue(5, 6);  // the error is not collected yet
  engine_->Drain();
  EXPECT_EQ(engine_->Collect()->result.step, StepId{1});
  EXPECT_THAT(engine_->Collect()->status,
              StatusIs(absl::StatusCode::kAborted, "told to"));
  EXPECT_FALSE(engine_->Collect().has_value());
  Issue(7, 7);
  engine_->Drain();
  EXPECT_THAT(CollectAll(), ElementsAre(7));
  EXPECT_THAT(runner_.Begun(3), ElementsAre(1, 2, 7));
}

TEST_F(ThreadStepEngineTest, AwaitEndsWithTheFirstStep) {
  Make(Tell::kErrors);
  engine_->Await();  // nothing is under way
  Issue(1, 2);
  runner_.Allow(1);
  engine_->Await();
  EXPECT_THAT(CollectAll(), ElementsAre(1));
  runner_.Allow(1);
  engine_->Await();
  EXPECT_THAT(CollectAll(), ElementsAre(2));
}

TEST_F(ThreadStepEngineTest, TheDescriptorTellsOfEachStepUntilItIsCollected) {
  Make(Tell::kEachStep);
  runner_.Allow(1);
  Issue(1, 2);
  EXPECT_TRUE(Readable(kLongMs));
  EXPECT_THAT(CollectAll(), ElementsAre(1));
  EXPECT_FALSE(Readable(0));
  runner_.Allow(1);
  EXPECT_TRUE(Readable(kLongMs));
  EXPECT_THAT(CollectAll(), ElementsAre(2));
}

TEST_F(ThreadStepEngineTest, TheDescriptorTellsOfErrorsAlone) {
  Make(Tell::kErrors);
  runner_.Fail(2);
  runner_.Allow(2);
  Issue(1, 1);
  engine_->Drain();
  EXPECT_FALSE(Readable(0));
  Issue(2, 2);
  EXPECT_TRUE(Readable(kLongMs));
}

TEST_F(ThreadStepEngineTest, TheEndWaitsForTheStepThatRuns) {
  Make(Tell::kEachStep);
  Issue(1, 3);
  EXPECT_THAT(runner_.Begun(1), ElementsAre(1));
  std::thread end([this] { engine_.reset(); });
  runner_.Allow(3);
  end.join();
  EXPECT_EQ(runner_.num_ended(), runner_.Begun(1).size());
}

}  // namespace
}  // namespace moebius
