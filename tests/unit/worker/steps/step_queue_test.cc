// What runs next, and what an error takes along.
#include "worker/steps/step_queue.h"

#include <utility>

#include "absl/status/status.h"
#include "gtest/gtest.h"
#include "tests/status_matchers.h"

namespace moebius {
namespace {

Batch BatchOf(uint64_t step) {
  Batch batch;
  batch.step = StepId{step};
  return batch;
}

class StepQueueTest : public testing::Test {
 protected:
  void Issue(uint64_t first, uint64_t last) {
    for (uint64_t step = first; step <= last; ++step) {
      queue_.Issue(BatchOf(step));
    }
  }
  // The number of the next step; 0: there is none.
  uint64_t Begin() {
    const auto batch = queue_.Begin();
    running_ = batch.has_value() ? batch->step : StepId{0};
    return running_.value;
  }
  void End(absl::Status status = absl::OkStatus()) {
    StepEnd end{std::move(status), {}};
    end.result.step = running_;
    queue_.End(std::move(end));
  }
  // Of a step that ended well; 0: there is none.
  uint64_t Collect() {
    const auto end = queue_.Collect();
    if (!end.has_value()) return 0;
    EXPECT_THAT(end->status, IsOk());
    return end->result.step.value;
  }

  StepQueue queue_;
  StepId running_;
};

TEST_F(StepQueueTest, AnErrorTakesAlongWhatWaits) {
  Issue(1, 3);
  EXPECT_EQ(Begin(), 1u);
  End();
  EXPECT_EQ(Begin(), 2u);
  End(absl::AbortedError("a peer gave up"));
  EXPECT_EQ(Begin(), 0u);
  EXPECT_TRUE(queue_.drained());
  EXPECT_EQ(Collect(), 1u);
  EXPECT_THAT(queue_.Collect()->status, StatusIs(absl::StatusCode::kAborted));
  EXPECT_FALSE(queue_.ended());
}

TEST_F(StepQueueTest, AnErrorTakesAlongWhatIsIssuedUntilItIsCollected) {
  Issue(1, 1);
  EXPECT_EQ(Begin(), 1u);
  End(absl::AbortedError("a peer gave up"));
  Issue(2, 3);
  EXPECT_EQ(Begin(), 0u);
  EXPECT_THAT(queue_.Collect()->status, StatusIs(absl::StatusCode::kAborted));
  Issue(1, 1);
  EXPECT_EQ(Begin(), 1u);
  End();
  EXPECT_EQ(Collect(), 1u);
}

TEST_F(StepQueueTest, StepsRunAndEndInTheirOrder) {
  Issue(1, 2);
  EXPECT_EQ(Begin(), 1u);
  EXPECT_EQ(Collect(), 0u);  // it runs
  Issue(3, 3);
  End();
  EXPECT_EQ(Begin(), 2u);
  End();
  EXPECT_EQ(Collect(), 1u);
  EXPECT_EQ(Begin(), 3u);
  EXPECT_FALSE(queue_.waiting());
  EXPECT_FALSE(queue_.drained());
  End();
  EXPECT_TRUE(queue_.drained());
  EXPECT_EQ(Collect(), 2u);
  EXPECT_EQ(Collect(), 3u);
  EXPECT_EQ(Collect(), 0u);
}

TEST_F(StepQueueTest, ItIsFullOfWhatIsNotCollected) {
  Issue(1, StepEngine::kMaxIssued);
  Begin();
  End();
  EXPECT_DEATH(Issue(0, 0), "");
  EXPECT_EQ(Collect(), 1u);
  Issue(0, 0);
}

}  // namespace
}  // namespace moebius
