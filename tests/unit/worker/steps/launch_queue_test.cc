// What is launched next, what ends, and what an error takes along.
#include "worker/steps/launch_queue.h"

#include <deque>
#include <optional>
#include <random>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "gtest/gtest.h"
#include "tests/status_matchers.h"

namespace moebius {
namespace {

using absl::StatusCode;

Batch BatchOf(uint64_t step) {
  Batch batch;
  batch.step = StepId{step};
  return batch;
}

class LaunchQueueTest : public testing::Test {
 protected:
  void Issue(uint64_t first, uint64_t last) {
    for (uint64_t step = first; step <= last; ++step) {
      queue_.Issue(BatchOf(step));
    }
  }
  void Launch(uint64_t step, const absl::Status& status = absl::OkStatus()) {
    ASSERT_TRUE(queue_.can_enter());
    EXPECT_EQ(queue_.Enter().step.value, step);
    EXPECT_FALSE(queue_.can_enter());  // one at a time
    queue_.Launch(status);
  }
  // The step whose end is to be awaited, which comes; 0: there is none.
  uint64_t Await() {
    const auto turn = queue_.ToAwait();
    if (!turn.has_value()) return 0;
    queue_.Awaited(turn->turn);
    return turn->step.value;
  }
  void End(uint64_t step, absl::Status status = absl::OkStatus()) {
    ASSERT_TRUE(queue_.can_end());
    StepEnd end{std::move(status), {}};
    end.result.step = StepId{step};
    queue_.End(std::move(end));
  }
  // Of a step that ended well; 0: there is none.
  uint64_t Collect() {
    const auto end = queue_.Collect();
    if (!end.has_value()) return 0;
    EXPECT_THAT(end->status, IsOk());
    return end->result.step.value;
  }

  LaunchQueue queue_;
};

TEST_F(LaunchQueueTest, AnErrorTakesAlongAllBehindIt) {
  Issue(1, 4);
  Launch(1);
  Launch(2);
  EXPECT_EQ(queue_.Enter().step.value, 3u);
  EXPECT_EQ(Await(), 1u);
  End(1, absl::AbortedError("a peer gave up"));
  EXPECT_TRUE(queue_.drained());
  EXPECT_FALSE(queue_.has_entered());
  EXPECT_EQ(Await(), 0u);
  Issue(5, 6);  // behind the error
  EXPECT_FALSE(queue_.can_enter());
  EXPECT_THAT(queue_.Collect()->status, StatusIs(StatusCode::kAborted));
  EXPECT_FALSE(queue_.ended());
  Issue(1, 1);  // another beginning
  Launch(1);
  EXPECT_FALSE(queue_.can_end());
  EXPECT_EQ(Await(), 1u);
  End(1);
  EXPECT_EQ(Collect(), 1u);
}

TEST_F(LaunchQueueTest, AStepThatCannotBeLaunchedFailsBehindThoseBeforeIt) {
  Issue(1, 3);
  Launch(1);
  Launch(2, absl::InternalError("it does not follow"));
  EXPECT_FALSE(queue_.can_enter());
  Issue(4, 4);
  EXPECT_FALSE(queue_.can_enter());
  EXPECT_FALSE(queue_.can_end());
  EXPECT_EQ(Await(), 1u);
  EXPECT_EQ(Await(), 0u);  // the other does not run
  EXPECT_THAT(queue_.ToEnd(), IsOk());
  End(1);
  EXPECT_THAT(queue_.ToEnd(), StatusIs(StatusCode::kInternal));
  End(2, queue_.ToEnd());
  EXPECT_TRUE(queue_.drained());
  EXPECT_EQ(Collect(), 1u);
  EXPECT_THAT(queue_.Collect()->status, StatusIs(StatusCode::kInternal));
}

// Somebody still awaits a step that was given up, of a number that comes again.
TEST_F(LaunchQueueTest, AnEndThatComesLateIsNotThatOfAnotherStep) {
  Issue(1, 2);
  Launch(1);
  Launch(2);
  EXPECT_EQ(Await(), 1u);
  const uint64_t late = queue_.ToAwait()->turn;
  End(1, absl::AbortedError("a peer gave up"));
  EXPECT_THAT(queue_.Collect()->status, StatusIs(StatusCode::kAborted));
  Issue(2, 2);
  Launch(2);
  queue_.Awaited(late);
  EXPECT_FALSE(queue_.can_end());
  EXPECT_EQ(Await(), 2u);
  EXPECT_TRUE(queue_.can_end());
}

TEST_F(LaunchQueueTest, ItIsFullOfWhatIsNotCollected) {
  Issue(1, StepEngine::kMaxIssued);
  Launch(1);
  EXPECT_EQ(Await(), 1u);
  End(1);
  EXPECT_DEATH(Issue(0, 0), "");
  EXPECT_EQ(Collect(), 1u);
  Issue(0, 0);
}

TEST_F(LaunchQueueTest, WhatIsDroppedIsNotLaunched) {
  Issue(1, 3);
  Launch(1);
  queue_.Enter();
  queue_.Drop();
  queue_.Launch(absl::OkStatus());
  EXPECT_FALSE(queue_.can_enter());
  EXPECT_FALSE(queue_.drained());
  EXPECT_EQ(Await(), 1u);
  EXPECT_EQ(Await(), 2u);
  End(1);
  End(2);
  EXPECT_TRUE(queue_.drained());
}

// Events in any order, beside what they should do.
class Walk {
 public:
  explicit Walk(unsigned seed) : random_(seed) {}

  void Step() {
    switch (random_() % 5) {
      case 0:
        return Issue();
      case 1:
        return entered_.has_value() ? Launch() : Enter();
      case 2:
        if (const auto turn = queue_.ToAwait()) queue_.Awaited(turn->turn);
        return;
      case 3:
        return End();
      default:
        return Collect();
    }
  }

 private:
  bool Fails() { return random_() % 20 == 0; }
  void Issue() {
    if (next_issued_ - next_collected_ >= StepEngine::kMaxIssued) return;
    queue_.Issue(BatchOf(next_issued_));
    if (!broken_) ++next_issued_;
  }
  void Enter() {
    if (!queue_.can_enter()) return;
    ASSERT_FALSE(broken_);
    entered_ = queue_.Enter().step.value;
    ASSERT_TRUE(queue_.has_entered());
  }
  void Launch() {
    const bool fails = Fails();
    queue_.Launch(fails ? absl::InternalError("") : absl::OkStatus());
    under_way_.push_back(*entered_);
    entered_.reset();
    broken_ = broken_ || fails;
  }
  void End() {
    if (!queue_.can_end()) return;
    ASSERT_FALSE(under_way_.empty());
    StepEnd end{queue_.ToEnd(), {}};
    if (end.status.ok() && Fails()) end.status = absl::AbortedError("");
    end.result.step = StepId{under_way_.front()};
    under_way_.pop_front();
    if (!end.status.ok()) {
      broken_ = true;
      entered_.reset();
      under_way_.clear();
    }
    queue_.End(std::move(end));
    ASSERT_EQ(queue_.has_entered(), entered_.has_value());
  }
  void Collect() {
    const auto end = queue_.Collect();
    if (!end.has_value()) return;
    if (end->status.ok()) {
      ASSERT_EQ(end->result.step.value, next_collected_);
      ++next_collected_;
      return;
    }
    ASSERT_TRUE(broken_ && queue_.drained() && !queue_.ended());
    broken_ = false;
    next_issued_ = next_collected_;
  }

  std::mt19937 random_;
  LaunchQueue queue_;
  uint64_t next_issued_ = 1, next_collected_ = 1;
  bool broken_ = false;  // an error is on its way: what is issued is dropped
  std::deque<uint64_t> under_way_;
  std::optional<uint64_t> entered_;
};

// Every step that was issued ends once, in order, or is behind an error.
TEST(LaunchQueue, AnyOrderOfEventsKeepsTheOrderOfSteps) {
  for (unsigned seed = 0; seed < 200; ++seed) {
    SCOPED_TRACE(seed);
    Walk walk(seed);
    for (int event = 0; event < 400 && !testing::Test::HasFailure(); ++event) {
      walk.Step();
    }
  }
}

}  // namespace
}  // namespace moebius
