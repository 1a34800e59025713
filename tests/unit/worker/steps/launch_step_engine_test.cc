// Steps behind one another: what runs beside what, and what is waited for.
#include "worker/steps/launch_step_engine.h"

#include <poll.h>

#include <deque>
#include <memory>
#include <set>
#include <utility>
#include <vector>

#include "absl/synchronization/mutex.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/status_matchers.h"

namespace moebius {
namespace {

using absl::StatusCode;
using testing::ElementsAre;
using Tell = StepEngine::Tell;

constexpr size_t kMostUnderWay = 2;

// A device that does one step after the other, each once it may.
class GatedLauncher final : public StepLauncher {
 public:
  void Enter(Batch batch) override {
    const absl::MutexLock lock(&mutex_);
    entered_ = batch.step.value;
  }
  bool CanLaunch() const override {
    const absl::MutexLock lock(&mutex_);
    return under_way_.empty() ||
           (under_way_.size() < kMostUnderWay && alone_.count(entered_) == 0);
  }
  absl::Status Launch() override {
    const absl::MutexLock lock(&mutex_);
    if (entered_ == unlaunchable_) return absl::InternalError("told to");
    launched_.push_back(entered_);
    under_way_.push_back(entered_);
    return absl::OkStatus();
  }
  void AwaitEnd(StepId step) override {
    const absl::MutexLock lock(&mutex_);
    const auto done = [this, step] { return done_ >= step.value; };
    mutex_.Await(absl::Condition(&done));
  }
  absl::StatusOr<StepResult> Finish() override {
    const absl::MutexLock lock(&mutex_);
    StepResult result;
    result.step = StepId{under_way_.front()};
    under_way_.pop_front();
    EXPECT_LE(result.step.value, done_);
    if (result.step.value == failing_) return absl::AbortedError("told to");
    return result;
  }
  void Drain() override {
    const absl::MutexLock lock(&mutex_);
    ++drains_;
    // What is behind an error ends by itself.
    if (!under_way_.empty()) done_ = std::max(done_, under_way_.back());
    under_way_.clear();
  }

  // The device has done all steps up to this one.
  void Do(uint64_t step) {
    const absl::MutexLock lock(&mutex_);
    done_ = step;
  }
  void Fail(uint64_t step) {
    const absl::MutexLock lock(&mutex_);
    failing_ = step;
  }
  void RefuseToLaunch(uint64_t step) {
    const absl::MutexLock lock(&mutex_);
    unlaunchable_ = step;
  }
  void LaunchAlone(uint64_t step) {
    const absl::MutexLock lock(&mutex_);
    alone_.insert(step);
  }
  // The steps that were launched, once there are so many.
  std::vector<uint64_t> Launched(size_t many) {
    const absl::MutexLock lock(&mutex_);
    const auto enough = [this, many] { return launched_.size() >= many; };
    mutex_.Await(absl::Condition(&enough));
    return launched_;
  }
  int drains() {
    const absl::MutexLock lock(&mutex_);
    return drains_;
  }

 private:
  mutable absl::Mutex mutex_;
  uint64_t entered_ = 0, done_ = 0, failing_ = 0, unlaunchable_ = 0;
  std::set<uint64_t> alone_;
  std::deque<uint64_t> under_way_;
  std::vector<uint64_t> launched_;
  int drains_ = 0;
};

class LaunchStepEngineTest : public testing::Test {
 protected:
  LaunchStepEngineTest() { Make(Tell::kEachStep); }
  void Make(Tell tell) {
    auto made = LaunchStepEngine::Create(&launcher_, tell);
    EXPECT_THAT(made, IsOk());
    engine_ = *std::move(made);
  }
  void Issue(uint64_t first, uint64_t last) {
    for (uint64_t step = first; step <= last; ++step) {
      Batch batch;
      batch.step = StepId{step};
      engine_->Issue(std::move(batch));
    }
  }
  // The next end, which is waited for.
  uint64_t Take() {
    engine_->Await();
    const auto end = engine_->Collect();
    if (!end.has_value() || !end->status.ok()) return 0;
    return end->result.step.value;
  }
  bool IsReadable() const {
    pollfd descriptor{engine_->completion_fd(), POLLIN, 0};
    return ::poll(&descriptor, 1, 0) == 1;
  }

  GatedLauncher launcher_;
  std::unique_ptr<LaunchStepEngine> engine_;
};

TEST_F(LaunchStepEngineTest, AnErrorEndsWhatIsBehindIt) {
  launcher_.Fail(1);
  Issue(1, 4);
  EXPECT_THAT(launcher_.Launched(2), ElementsAre(1, 2));
  launcher_.Do(1);
  engine_->Await();
  EXPECT_THAT(engine_->Collect()->status, StatusIs(StatusCode::kAborted));
  engine_->Drain();
  EXPECT_EQ(engine_->Collect(), std::nullopt);
  EXPECT_EQ(launcher_.drains(), 1);
  launcher_.Fail(0);
  launcher_.Do(0);
  Issue(1, 2);  // another beginning
  launcher_.Do(2);
  EXPECT_EQ(Take(), 1u);
  EXPECT_EQ(Take(), 2u);
}

TEST_F(LaunchStepEngineTest, AStepThatCannotBeLaunchedLetsOthersEnd) {
  launcher_.RefuseToLaunch(2);
  Issue(1, 3);
  launcher_.Do(1);
  EXPECT_EQ(Take(), 1u);
  engine_->Await();
  EXPECT_THAT(engine_->Collect()->status, StatusIs(StatusCode::kInternal));
  EXPECT_EQ(launcher_.drains(), 1);
  EXPECT_THAT(launcher_.Launched(1), ElementsAre(1));
}

TEST_F(LaunchStepEngineTest, TheNextStepIsLaunchedBeforeTheLastHasEnded) {
  Issue(1, 3);
  EXPECT_THAT(launcher_.Launched(2), ElementsAre(1, 2));
  EXPECT_EQ(engine_->Collect(), std::nullopt);
  EXPECT_FALSE(IsReadable());
  launcher_.Do(1);
  EXPECT_EQ(Take(), 1u);
  EXPECT_THAT(launcher_.Launched(3), ElementsAre(1, 2, 3));
  launcher_.Do(3);
  EXPECT_EQ(Take(), 2u);
  EXPECT_EQ(Take(), 3u);
}

TEST_F(LaunchStepEngineTest, AStepThatNeedsTheHostWaitsForThoseBeforeIt) {
  launcher_.LaunchAlone(2);
  Issue(1, 3);
  launcher_.Do(1);
  EXPECT_EQ(Take(), 1u);
  EXPECT_THAT(launcher_.Launched(3), ElementsAre(1, 2, 3));
  launcher_.Do(3);
  EXPECT_EQ(Take(), 2u);
  EXPECT_EQ(Take(), 3u);
}

TEST_F(LaunchStepEngineTest, TheDescriptorTellsWhatItIsToTell) {
  Issue(1, 1);
  launcher_.Do(1);
  engine_->Drain();
  EXPECT_TRUE(IsReadable());
  EXPECT_EQ(Take(), 1u);
  EXPECT_FALSE(IsReadable());
  Make(Tell::kErrors);
  launcher_.Fail(3);
  Issue(2, 3);
  launcher_.Do(2);
  EXPECT_EQ(Take(), 2u);
  EXPECT_FALSE(IsReadable());
  launcher_.Do(3);
  engine_->Drain();
  EXPECT_TRUE(IsReadable());
}

TEST_F(LaunchStepEngineTest, TheDestructorWaitsForWhatRunsAlone) {
  Issue(1, StepEngine::kMaxIssued);
  launcher_.Launched(2);
  launcher_.Do(StepEngine::kMaxIssued);
  engine_.reset();
  EXPECT_LE(launcher_.Launched(2).size(), size_t{StepEngine::kMaxIssued});
}

TEST_F(LaunchStepEngineTest, ManyStepsComeInOrder) {
  constexpr uint64_t kSteps = 2000;
  launcher_.Do(kSteps);
  uint64_t issued = 0;
  for (uint64_t step = 1; step <= kSteps; ++step) {
    while (issued < kSteps && issued < step + 4) {
      ++issued;
      Issue(issued, issued);
    }
    ASSERT_EQ(Take(), step);
  }
}

}  // namespace
}  // namespace moebius
