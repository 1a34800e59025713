// Barriers that are given up beside what waits at them, and gone on from.
#include "worker/peers/group_fence.h"

#include <algorithm>
#include <array>
#include <cstddef>
#include <memory>
#include <thread>
#include <vector>

#include "absl/time/time.h"
#include "gtest/gtest.h"
#include "tests/status_matchers.h"
#include "worker/memory/signals.h"

namespace moebius {
namespace {

using absl::StatusCode;

class SignalsFenceTest : public testing::Test {
 protected:
  SignalsFenceTest() {
    std::vector<std::byte*> bases;
    for (Rank r = 0; r < kRanks; ++r) {
      InitSignals(signals_[r].data(), r, kRanks, Incarnation{1});
      bases.push_back(signals_[r].data());
    }
    for (Rank r = 0; r < kRanks; ++r) {
      fences_.push_back(std::make_unique<SignalsFence>(
          r, bases, BarrierOptions{}, absl::Seconds(20)));
    }
  }
  // Both ranks.
  void Meet() {
    std::thread other([this] { EXPECT_THAT(fences_[1]->Wait(), IsOk()); });
    EXPECT_THAT(fences_[0]->Wait(), IsOk());
    other.join();
  }

  static constexpr int kRanks = 2;
  struct alignas(4096) Page : std::array<std::byte, 4096> {};
  std::array<Page, kRanks> signals_{};
  std::vector<std::unique_ptr<SignalsFence>> fences_;
};

TEST_F(SignalsFenceTest, AbandonEndsAWaitHereAndThere) {
  Meet();
  std::thread here([this] {
    EXPECT_THAT(fences_[0]->Wait(), StatusIs(StatusCode::kAborted));
  });
  while (SignalsAt(signals_[0].data())->arrival.asleep.load() == 0) {
    std::this_thread::yield();
  }
  fences_[0]->Abandon();
  here.join();
  EXPECT_THAT(fences_[1]->Wait(), IsOk());  // we had arrived there
  EXPECT_THAT(fences_[1]->Wait(), StatusIs(StatusCode::kAborted));
}

// A step that was between two barriers may find the next one complete; it must
// not be waited for, nor wait, at the one behind that.
TEST_F(SignalsFenceTest, WhatGoesOnAllTheSameEndsAtItsNextBarriers) {
  Meet();
  fences_[0]->Abandon();
  EXPECT_THAT(fences_[0]->Wait(), StatusIs(StatusCode::kAborted));
  EXPECT_THAT(fences_[0]->Wait(), StatusIs(StatusCode::kAborted));
  for (int i = 0; i < 2; ++i) {
    EXPECT_THAT(fences_[1]->Wait(), StatusIs(StatusCode::kAborted));
  }
  EXPECT_EQ(fences_[0]->abandoned(), 3u);
}

TEST_F(SignalsFenceTest, GoesOnAboveWhatWasAbandoned) {
  Meet();
  fences_[0]->Abandon();
  EXPECT_THAT(fences_[0]->Wait(), StatusIs(StatusCode::kAborted));
  const uint64_t next =
      std::max(fences_[0]->abandoned(), fences_[1]->abandoned()) + 1;
  for (const auto& fence : fences_) fence->GoOn(next);
  Meet();
  Meet();
  EXPECT_EQ(fences_[0]->abandoned(), next + 1);
}

// Barriers at which devices meet: where they are, nobody sees here.
TEST_F(SignalsFenceTest, AbandonEndsWhatAnyDeviceMayHaveArrivedAt) {
  Meet();
  EXPECT_EQ(fences_[0]->Take(10), 2u);
  EXPECT_EQ(fences_[0]->abandoned(), 11u);
  fences_[1]->Abandon();
  const SignalsArrival& arrival = SignalsAt(signals_[1].data())->arrival;
  EXPECT_EQ(arrival.aborted_through.load(), 12u);
}

TEST_F(SignalsFenceTest, WhatIsTakenAfterAbandonIsGivenUp) {
  Meet();
  fences_[0]->Abandon();
  EXPECT_EQ(fences_[0]->Take(10), 2u);
  const SignalsArrival& arrival = SignalsAt(signals_[0].data())->arrival;
  EXPECT_EQ(arrival.aborted_through.load(), 11u);
  EXPECT_EQ(fences_[0]->abandoned(), 11u);
  for (const auto& fence : fences_) fence->GoOn(12);
  Meet();
  EXPECT_EQ(fences_[0]->Take(1), 13u);
}

}  // namespace
}  // namespace moebius
