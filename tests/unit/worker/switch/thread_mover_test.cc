// Moves on a host: begun, polled in pieces or waited for, and begun anew.
#include "worker/switch/thread_mover.h"

#include <cstring>
#include <memory>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/status_matchers.h"

namespace moebius {
namespace {

using testing::HasSubstr;

constexpr int64_t kSlotBytes = 4096;
constexpr int64_t kPageBytes = 1024;
constexpr int kRanks = 2;
const SlotPull kPull{kSlotBytes, 0, 1};

class ThreadMoverTest : public testing::Test {
 protected:
  void SetUp() override {
    MemoryGeometry geometry;
    geometry[RegionKind::kExperts] = 8 * kSlotBytes;
    geometry[RegionKind::kKv] = 512 * kPageBytes;
    auto memories = WorkerMemory::CreateInProcess(kRanks, geometry);
    ASSERT_THAT(memories, IsOk());
    memories_ = *std::move(memories);
    for (Rank r = 0; r < kRanks; ++r) {
      for (RegionKind kind : {RegionKind::kExperts, RegionKind::kKv}) {
        std::memset(memories_[r]->mutable_base(kind), 17 * (r + 1),
                    static_cast<size_t>(geometry[kind]));
      }
    }
    mover_ =
        std::make_unique<ThreadMover>(memories_[0].get(), kPageBytes, nullptr);
    for (uint32_t page = 0; page < 200; ++page) {
      wave_.push_back({1, page, 0, 300 + page});
    }
  }

  std::byte Expert(int64_t at) {
    return memories_[0]->base(RegionKind::kExperts, 0)[kSlotBytes + at];
  }
  std::byte Page(uint32_t page) {
    return memories_[0]->base(RegionKind::kKv, 0)[page * kPageBytes];
  }
  void ExpectPrecondition(const absl::Status& status, const char* why) {
    EXPECT_THAT(status, StatusIs(absl::StatusCode::kFailedPrecondition,
                                 HasSubstr(why)));
  }

  static constexpr std::byte kOwn{17}, kPeers{34};
  const std::vector<CopySegment> segments_ = {
      {1, 0, 0, 1024}, {1, 1024, 1024, 1024}, {0, 2048, 2048, 2048}};
  std::vector<std::unique_ptr<WorkerMemory>> memories_;
  std::unique_ptr<ThreadMover> mover_;
  std::vector<PageMove> wave_;
};

TEST_F(ThreadMoverTest, ThereIsOneMoveAtATime) {
  ExpectPrecondition(mover_->Wait().status(), "no move");
  ASSERT_THAT(mover_->BeginLayer(kPull, segments_), IsOk());
  ExpectPrecondition(mover_->BeginLayer(kPull, segments_), "under way");
  ExpectPrecondition(mover_->BeginWave(wave_), "under way");
  EXPECT_THAT(mover_->Wait(), IsOk());
  ExpectPrecondition(mover_->Wait().status(), "no move");
}

TEST_F(ThreadMoverTest, WhatCannotBeIsRefusedAndNothingIsUnderWay) {
  EXPECT_THAT(mover_->BeginLayer({kSlotBytes, 0, -1}, segments_),
              StatusIs(absl::StatusCode::kInvalidArgument));
  wave_.push_back(wave_.front());
  EXPECT_THAT(mover_->BeginWave(wave_),
              StatusIs(absl::StatusCode::kInvalidArgument));
  const std::vector<CopySegment> beyond = {{1, 0, 0, kSlotBytes + 1}};
  ASSERT_THAT(mover_->BeginLayer(kPull, beyond), IsOk());
  EXPECT_THAT(mover_->Wait(), StatusIs(absl::StatusCode::kInvalidArgument));
  EXPECT_EQ(Expert(0), kOwn);
  EXPECT_THAT(mover_->Poll(), IsOk());
  EXPECT_THAT(mover_->BeginLayer(kPull, segments_), IsOk());
}

TEST_F(ThreadMoverTest, BeginAloneCopiesNothing) {
  ASSERT_THAT(mover_->BeginLayer(kPull, segments_), IsOk());
  EXPECT_EQ(Expert(0), kOwn);
}

TEST_F(ThreadMoverTest, ALayerIsPolledSegmentBySegment) {
  ASSERT_THAT(mover_->BeginLayer(kPull, segments_), IsOk());
  EXPECT_FALSE(*mover_->Poll());
  EXPECT_EQ(Expert(0), kPeers);
  EXPECT_EQ(Expert(1024), kOwn);
  EXPECT_FALSE(*mover_->Poll());
  EXPECT_TRUE(*mover_->Poll());
  EXPECT_TRUE(*mover_->Poll());
  const auto moved = mover_->Wait();
  ASSERT_THAT(moved, IsOk());
  EXPECT_EQ(moved->bytes, kSlotBytes);
  EXPECT_EQ(Expert(1024), kPeers);
  EXPECT_EQ(Expert(2048), kOwn);
}

TEST_F(ThreadMoverTest, AWaveIsPolledInPiecesAndEndedByWaiting) {
  ASSERT_THAT(mover_->BeginWave(wave_), IsOk());
  EXPECT_FALSE(*mover_->Poll());
  EXPECT_EQ(Page(300), kPeers);
  EXPECT_EQ(Page(499), kOwn);
  const auto moved = mover_->Wait();
  ASSERT_THAT(moved, IsOk());
  EXPECT_EQ(moved->bytes, 200 * kPageBytes);
  EXPECT_EQ(Page(499), kPeers);
}

TEST_F(ThreadMoverTest, WhatHasNothingToMoveEndsAtOnce) {
  ASSERT_THAT(mover_->BeginWave({}), IsOk());
  EXPECT_EQ(mover_->Wait()->bytes, 0);
}

}  // namespace
}  // namespace moebius
