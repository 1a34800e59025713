#include <cstring>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/status_matchers.h"
#include "worker/switch/pull.h"

namespace moebius {
namespace {

using testing::HasSubstr;

constexpr int64_t kSlotBytes = 256 << 10;
constexpr int64_t kPageBytes = 8 << 10;
constexpr int kRanks = 3;

class PullTest : public testing::Test {
 protected:
  PullTest() {
    MemoryGeometry geometry;
    geometry[RegionKind::kExperts] = 8 * kSlotBytes;  // 2 MiB: no slack
    geometry[RegionKind::kKv] = 2 << 20;
    auto memories = WorkerMemory::CreateInProcess(kRanks, geometry);
    EXPECT_THAT(memories, IsOk());
    memories_ = *std::move(memories);
    for (Rank rank = 0; rank < kRanks; ++rank) {
      for (RegionKind kind : {RegionKind::kExperts, RegionKind::kKv}) {
        std::byte* const base = memories_[rank]->mutable_base(kind);
        for (int64_t i = 0; i < memories_[rank]->size_bytes(kind); ++i) {
          base[i] = ByteAt(kind, rank, i);
        }
      }
    }
  }

  // What a region holds at the start.
  static std::byte ByteAt(RegionKind kind, Rank rank, int64_t offset) {
    uint64_t x = offset + (static_cast<uint64_t>(kind) << 50) +
                 (static_cast<uint64_t>(rank) << 40);
    x *= 0x9e3779b97f4a7c15ULL;
    return static_cast<std::byte>(x >> 56);
  }

  bool Untouched(RegionKind kind, Rank rank, int64_t begin, int64_t end) {
    const std::byte* const base = memories_[rank]->base(kind, rank);
    for (int64_t i = begin; i < end; ++i) {
      if (base[i] != ByteAt(kind, rank, i)) return false;
    }
    return true;
  }
  bool AllUntouched(RegionKind kind) {
    for (Rank rank = 0; rank < kRanks; ++rank) {
      if (!Untouched(kind, rank, 0, memories_[rank]->size_bytes(kind))) {
        return false;
      }
    }
    return true;
  }

  absl::StatusOr<int64_t> Pull(const SlotPull& pull,
                               const std::vector<CopySegment>& segments,
                               ThreadPool* pool = nullptr) {
    return PullSlot(*memories_[1], pull, segments, pool);
  }
  absl::StatusOr<int64_t> PullPages(const std::vector<PageMove>& wave,
                                    ThreadPool* pool = nullptr) {
    PagePuller puller(memories_[1].get(), kPageBytes);
    const auto moved = puller.Pull(wave, pool);
    // A wave that was refused leaves nothing behind.
    EXPECT_THAT(puller.Pull({}, pool), IsOk());
    return moved;
  }

  std::vector<std::unique_ptr<WorkerMemory>> memories_;
};

TEST_F(PullTest, SlotsOutsideTheRegionAreRefused) {
  const std::vector<CopySegment> segments = {{0, 0, 0, 16}};
  for (const SlotPull& pull :
       {SlotPull{kSlotBytes, -1, 0}, SlotPull{kSlotBytes, 0, -1},
        SlotPull{kSlotBytes, 8, 0}, SlotPull{kSlotBytes, 0, 8},
        SlotPull{kSlotBytes, 0, INT_MAX}, SlotPull{0, 0, 1},
        SlotPull{-kSlotBytes, 0, 1}, SlotPull{INT64_MAX, 0, 1},
        SlotPull{kSlotBytes, 3, 3}}) {
    EXPECT_THAT(Pull(pull, segments),
                StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("slot")))
        << pull.slot_bytes << " " << pull.src_slot << " " << pull.dst_slot;
  }
  EXPECT_TRUE(AllUntouched(RegionKind::kExperts));
}

TEST_F(PullTest, SegmentsOutsideTheSlotAreRefusedBeforeAnyCopy) {
  for (const CopySegment& bad :
       {CopySegment{-1, 0, 0, 16}, CopySegment{kRanks, 0, 0, 16},
        CopySegment{0, -1, 0, 16}, CopySegment{0, 0, -1, 16},
        CopySegment{0, 0, 0, -16}, CopySegment{0, 0, 0, kSlotBytes + 1},
        CopySegment{0, 1, 0, kSlotBytes}, CopySegment{0, 0, 1, kSlotBytes},
        CopySegment{0, INT64_MAX, 0, 16}, CopySegment{0, 0, 0, INT64_MAX}}) {
    EXPECT_THAT(Pull({kSlotBytes, 0, 1}, {{0, 0, 0, 16}, bad}),
                StatusIs(absl::StatusCode::kInvalidArgument));
  }
  EXPECT_TRUE(AllUntouched(RegionKind::kExperts));
}

TEST_F(PullTest, SlotIsBuiltFromEveryRankAndNothingElseChanges) {
  ThreadPool pool(2);
  for (ThreadPool* threads : {static_cast<ThreadPool*>(nullptr), &pool}) {
    const int64_t third = kSlotBytes / 4;
    const auto moved =
        Pull({kSlotBytes, 2, 3},
             {{2, 0, third, third}, {0, third, 0, third}, {1, 7, 2 * third, 9}},
             threads);
    ASSERT_THAT(moved, IsOk());
    EXPECT_EQ(*moved, 2 * third + 9);
    const std::byte* const slot =
        memories_[1]->base(RegionKind::kExperts, 1) + 3 * kSlotBytes;
    for (int64_t i = 0; i < third; ++i) {
      ASSERT_EQ(slot[third + i],
                ByteAt(RegionKind::kExperts, 2, 2 * kSlotBytes + i));
      ASSERT_EQ(slot[i],
                ByteAt(RegionKind::kExperts, 0, 2 * kSlotBytes + third + i));
    }
    for (int64_t i = 0; i < 9; ++i) {
      ASSERT_EQ(slot[2 * third + i],
                ByteAt(RegionKind::kExperts, 1, 2 * kSlotBytes + 7 + i));
    }
    EXPECT_TRUE(Untouched(RegionKind::kExperts, 1, 0, 3 * kSlotBytes));
    EXPECT_TRUE(Untouched(RegionKind::kExperts, 1,
                          3 * kSlotBytes + 2 * third + 9, 8 * kSlotBytes));
    EXPECT_TRUE(Untouched(RegionKind::kExperts, 0, 0, 8 * kSlotBytes));
    EXPECT_TRUE(Untouched(RegionKind::kExperts, 2, 0, 8 * kSlotBytes));
  }
}

TEST_F(PullTest, ChecksumTellsSlotsApart) {
  const uint64_t before = SlotChecksum(*memories_[1], kSlotBytes, 5, nullptr);
  EXPECT_NE(before, SlotChecksum(*memories_[1], kSlotBytes, 4, nullptr));
  ASSERT_THAT(Pull({kSlotBytes, 4, 5}, {{1, 0, 0, kSlotBytes}}), IsOk());
  EXPECT_EQ(SlotChecksum(*memories_[1], kSlotBytes, 5, nullptr),
            SlotChecksum(*memories_[1], kSlotBytes, 4, nullptr));
}

TEST_F(PullTest, PagesThatCannotBeAreRefusedBeforeAnyCopy) {
  const PageId pages = (2 << 20) / kPageBytes;
  const PageMove good{0, 1, 1, 2};
  for (const PageMove& bad :
       {PageMove{-1, 0, 1, 0}, PageMove{kRanks, 0, 1, 0}, PageMove{0, 0, -1, 0},
        PageMove{0, 0, kRanks, 0}, PageMove{0, pages, 1, 0},
        PageMove{0, 0, 1, pages}, PageMove{0, kNoPage, 1, 0},
        PageMove{0, 0, 1, kNoPage},
        // another's move is checked as well
        PageMove{0, 0, 2, pages}}) {
    EXPECT_THAT(PullPages({good, bad}),
                StatusIs(absl::StatusCode::kInvalidArgument));
  }
  EXPECT_THAT(
      PullPages({good, {2, 9, 1, 2}}),
      StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("written twice")));
  EXPECT_THAT(PullPages({good, {1, 2, 1, 3}}),
              StatusIs(absl::StatusCode::kInvalidArgument,
                       HasSubstr("read and written")));
  EXPECT_THAT(PullPages({good, {1, 2, 0, 3}}),
              StatusIs(absl::StatusCode::kInvalidArgument,
                       HasSubstr("read and written")));
  EXPECT_TRUE(AllUntouched(RegionKind::kKv));
}

TEST_F(PullTest, WaveMovesOurPagesAndNoOthers) {
  ThreadPool pool(1);
  const PageId last = (2 << 20) / kPageBytes - 1;
  const auto moved = PullPages(
      {{0, 3, 1, last}, {2, last, 1, 0}, {1, 5, 1, 6}, {1, 7, 0, 8}}, &pool);
  ASSERT_THAT(moved, IsOk());
  EXPECT_EQ(*moved, 3 * kPageBytes);
  const std::byte* const kv = memories_[1]->base(RegionKind::kKv, 1);
  for (int64_t i = 0; i < kPageBytes; ++i) {
    ASSERT_EQ(kv[last * kPageBytes + i],
              ByteAt(RegionKind::kKv, 0, 3 * kPageBytes + i));
    ASSERT_EQ(kv[i], ByteAt(RegionKind::kKv, 2, last * kPageBytes + i));
    ASSERT_EQ(kv[6 * kPageBytes + i],
              ByteAt(RegionKind::kKv, 1, 5 * kPageBytes + i));
  }
  EXPECT_TRUE(Untouched(RegionKind::kKv, 1, kPageBytes, 6 * kPageBytes));
  EXPECT_TRUE(Untouched(RegionKind::kKv, 1, 7 * kPageBytes, last * kPageBytes));
  EXPECT_TRUE(Untouched(RegionKind::kKv, 0, 0, 2 << 20));
}

TEST_F(PullTest, EmptyWaveMovesNothing) {
  const auto moved = PullPages({});
  ASSERT_THAT(moved, IsOk());
  EXPECT_EQ(*moved, 0);
}

}  // namespace
}  // namespace moebius
