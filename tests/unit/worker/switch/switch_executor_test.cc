// A worker's part in a switch: what PREPARE refuses, what COMMIT does to
// weights and pages, with threads for ranks over real regions.
#include "worker/switch/switch_executor.h"

#include <cstring>
#include <deque>
#include <functional>
#include <future>
#include <memory>
#include <thread>
#include <vector>

#include "common/base/status_macros.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/status_matchers.h"
#include "tests/unit/worker/switch/switch_ranks.h"
#include "worker/switch/pull.h"

namespace moebius {
namespace {

using testing::HasSubstr;

constexpr int kRanks = 2;
constexpr int64_t kPageBytes = 256;
constexpr uint32_t kPages = 16, kSlots = 4;

ExpertShape Experts(int spare_slots) {
  ExpertShape shape;
  shape.spare_slots = spare_slots;
  shape.num_ranks = kRanks;
  shape.num_moe_layers = 3;
  shape.num_experts = 4;
  shape.intermediate_rows = 64;
  shape.row_bytes = 64;
  return shape;
}
const AttentionShape kAttention{kRanks, 4, 2};
constexpr ExpertsState kStart = ExpertsState::At(ExpertParallel(), Side::kHigh);

// Slot 0: one block, in EP on rank 0 in two pages, in TP a page a rank.
KvTable TpTable() { return {0, 1, {{0, 0, 1, {3}}, {1, 1, 1, {7}}}}; }
KvPlan ToTp() { return {{{{0, 4, 1, 7}}}, {TpTable()}}; }
KvPlan ToEp() { return {{{{1, 7, 0, 9}}}, {{0, 1, {{0, 0, 2, {3, 9}}}}}}; }

// Notes what a rank may use at each barrier of its copies.
class NotingBarrier final : public Barrier {
 public:
  explicit NotingBarrier(Barrier* barrier) : barrier_(barrier) {}
  absl::Status Wait() override {
    allowed_.push_back(AllowedHere());
    return barrier_->Wait();
  }
  const std::vector<cpu_set_t>& allowed() const { return allowed_; }

 private:
  Barrier* const barrier_;
  std::vector<cpu_set_t> allowed_;
};

// Copies while the caller does something else, as an engine does; of layers
// that are under way one after the other.
class EngineMover final : public Mover {
 public:
  EngineMover(std::unique_ptr<Mover> mover, int most_layers)
      : mover_(std::move(mover)), most_layers_(most_layers) {}
  int MostLayers() const override { return most_layers_; }
  absl::Status BeginLayer(const SlotPull& pull,
                          absl::Span<const CopySegment> segments) override {
    EXPECT_LT(static_cast<int>(moved_.size()), most_layers_);
    return Launch(
        [this, pull, segments] { return mover_->BeginLayer(pull, segments); });
  }
  absl::Status BeginWave(absl::Span<const PageMove> wave) override {
    EXPECT_TRUE(moved_.empty());
    return Launch([this, wave] { return mover_->BeginWave(wave); });
  }
  absl::StatusOr<bool> Poll() override {
    return moved_.empty() || moved_.front().wait_for(std::chrono::seconds(0)) ==
                                 std::future_status::ready;
  }
  absl::StatusOr<Moved> Wait() override {
    if (moved_.empty()) return absl::FailedPreconditionError("no move");
    auto moved = moved_.front().get();
    moved_.pop_front();
    return moved;
  }

 private:
  absl::Status Launch(std::function<absl::Status()> begin) {
    std::shared_future<absl::StatusOr<Moved>> before;
    if (!moved_.empty()) before = moved_.back();
    moved_.push_back(std::async(
        std::launch::async, [this, begin, before]() -> absl::StatusOr<Moved> {
          if (before.valid()) before.wait();
          RETURN_IF_ERROR(begin());
          return mover_->Wait();
        }));
    return absl::OkStatus();
  }

  const std::unique_ptr<Mover> mover_;
  const int most_layers_;
  std::deque<std::shared_future<absl::StatusOr<Moved>>> moved_;
};

// One rank copies as a host does, the other as a device.
class SwitchExecutorTest : public testing::Test, protected SwitchRanks {
 protected:
  explicit SwitchExecutorTest(int spare_slots = 1)
      : SwitchRanks(kAttention, Experts(spare_slots),
                    {kPageBytes, kPages, kSlots}) {}

  void SetUp() override {
    for (Rank r = 0; r < kRanks; ++r) {
      std::byte* kv = memories_[r]->mutable_base(RegionKind::kKv);
      for (uint32_t page = 0; page < kPages; ++page) {
        std::memset(kv + page * kPageBytes, 16 * r + page, kPageBytes);
      }
      StepPlan plan;
      plan.admissions = {{0, RequestId{1}, 3, {5, 6, 7}, {}}};
      plan.page_rows = {{0, 0, 0, {3, 4}}};
      auto batch = sequences_[r]->Apply(plan);
      ASSERT_THAT(batch, IsOk());
      slots_[r]->Apply(*batch);
      sequences_[r]->NoteDone();
      barriers_.push_back(std::make_unique<NotingBarrier>(fences_[r].get()));
    }
    movers_[1] = std::make_unique<EngineMover>(std::move(movers_[1]),
                                               experts_.spare_slots);
    Start(kStart, [this](Rank r) { return barriers_[r].get(); });
  }

  uint8_t FirstByteOf(Rank rank, PageId page) const {
    return static_cast<uint8_t>(
        memories_[rank]->base(RegionKind::kKv, rank)[page * kPageBytes]);
  }

  std::vector<std::unique_ptr<NotingBarrier>> barriers_;
};

TEST_F(SwitchExecutorTest, PrepareRefusesWhatCannotBeDone) {
  SwitchExecutor& executor = *executors_[0];
  const auto refused = [&](uint64_t epoch, Layout target, const KvPlan& plan) {
    const wire::Prepared prepared =
        executor.Prepare(wire::Prepare{Epoch{epoch}, target, plan});
    EXPECT_FALSE(prepared.ok);
    EXPECT_EQ(prepared.epoch, Epoch{epoch});
    return prepared.reason;
  };
  const Layout tp = TensorParallel(kRanks);
  EXPECT_THAT(refused(1, ExpertParallel(), {}), HasSubstr("cannot switch"));
  EXPECT_THAT(refused(1, Layout{3}, {}), HasSubstr("cannot switch"));
  KvPlan plan = ToTp();
  plan.waves[0][0].dst_page = kPages;
  EXPECT_THAT(refused(1, tp, plan), HasSubstr("page 16"));
  plan = ToTp();
  plan.waves[0][0].src_rank = kRanks;
  EXPECT_FALSE(refused(1, tp, plan).empty());
  plan = ToTp();
  plan.tables[0].tables[0].pages = {kPages};
  EXPECT_THAT(refused(1, tp, plan), HasSubstr("page 16 of a pool of 16"));
  plan = ToTp();
  plan.tables[0].slot = 1;
  EXPECT_THAT(refused(1, tp, plan), HasSubstr("slot 1"));
  plan = ToTp();
  plan.tables[0].tables[0].kv_begin = 1;
  EXPECT_THAT(refused(1, tp, plan), HasSubstr("heads of rank 0"));
  // An epoch is never used twice, a lower one not at all.
  EXPECT_TRUE(executor.Prepare(wire::Prepare{Epoch{5}, tp, ToTp()}).ok);
  EXPECT_THAT(refused(5, tp, ToTp()), HasSubstr("epoch 5 after 5"));
  EXPECT_THAT(refused(4, tp, ToTp()), HasSubstr("epoch 4 after 5"));
}

TEST_F(SwitchExecutorTest, ACommitThatIsNotPreparedChangesNothing) {
  SwitchExecutor& executor = *executors_[0];
  const auto not_prepared = StatusIs(absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(executor.Commit(wire::Commit{Epoch{1}, StepId{1}}), not_prepared);
  const wire::Prepare prepare{Epoch{2}, TensorParallel(kRanks), ToTp()};
  ASSERT_TRUE(executor.Prepare(prepare).ok);
  EXPECT_THAT(executor.Commit(wire::Commit{Epoch{1}, StepId{1}}), not_prepared);
  executor.Abort(Epoch{1});  // another's: changes nothing
  executor.Abort(Epoch{2});
  EXPECT_THAT(executor.Commit(wire::Commit{Epoch{2}, StepId{1}}), not_prepared);
  EXPECT_EQ(executor.experts(), kStart);
  EXPECT_THAT(sequences_[0]->Find(0)->pages, testing::ElementsAre(3, 4));
}

TEST_F(SwitchExecutorTest, ThereAndBackMovesPagesAndKeepsEveryWeight) {
  std::vector<std::vector<std::byte>> before;
  const int64_t slot = experts_.slot_bytes();
  for (Rank r = 0; r < kRanks; ++r) {
    const std::byte* base = memories_[r]->base(RegionKind::kExperts, r);
    // Layer l is in slot l + 1.
    before.emplace_back(base + slot, base + experts_.region_bytes());
  }
  const uint64_t loaded = Checksum(kStart);

  auto switched = Switch(Epoch{1}, TensorParallel(kRanks), ToTp());
  EXPECT_EQ(switched[0].checksum, switched[1].checksum);
  const ExpertsState there =
      ExpertsState::At(TensorParallel(kRanks), Side::kLow);
  EXPECT_EQ(executors_[0]->experts(), there);
  EXPECT_EQ(Checksum(there), loaded);
  EXPECT_EQ(switched[0].weight_bytes, uint64_t(3 * slot));
  EXPECT_EQ(switched[1].kv_bytes, uint64_t(kPageBytes));
  EXPECT_THAT(sequences_[0]->Find(0)->pages, testing::ElementsAre(3));
  EXPECT_THAT(sequences_[1]->Find(0)->pages, testing::ElementsAre(7));
  EXPECT_THAT(slots_[0]->At(0).pages, testing::ElementsAre(3));
  EXPECT_THAT(slots_[1]->At(0).pages, testing::ElementsAre(7));
  EXPECT_EQ(FirstByteOf(1, 7), 4);

  switched = Switch(Epoch{2}, ExpertParallel(), ToEp());
  EXPECT_EQ(executors_[0]->experts(), kStart);
  EXPECT_EQ(Checksum(kStart), loaded);
  EXPECT_THAT(sequences_[0]->Find(0)->pages, testing::ElementsAre(3, 9));
  EXPECT_EQ(sequences_[1]->Find(0)->num_blocks(), 0);
  EXPECT_EQ(FirstByteOf(0, 9), 4);
  for (Rank r = 0; r < kRanks; ++r) {
    const std::byte* base = memories_[r]->base(RegionKind::kExperts, r);
    EXPECT_EQ(std::memcmp(base + slot, before[r].data(), before[r].size()), 0);
  }
}

TEST_F(SwitchExecutorTest, GoesOnOnlyInAStateThatCanBe) {
  SwitchExecutor& executor = *executors_[0];
  const Layout ep = ExpertParallel(), tp = TensorParallel(kRanks);
  for (const ExpertsState& impossible :
       {ExpertsState::At(Layout{3}, Side::kLow),
        ExpertsState{ep, tp, Side::kLow, 4},
        ExpertsState{ep, tp, Side::kLow, -1}}) {
    EXPECT_THAT(executor.GoOn(impossible, Epoch{1}),
                StatusIs(absl::StatusCode::kInvalidArgument));
    EXPECT_EQ(executor.experts(), kStart);
  }
  EXPECT_THAT(executor.Finish(SwitchTail{Epoch{1}, 0, {}}),
              StatusIs(absl::StatusCode::kInvalidArgument));
  ASSERT_THAT(executor.GoOn({ep, tp, Side::kHigh, 1}, Epoch{1}), IsOk());
  EXPECT_THAT(
      executor.Finish(SwitchTail{Epoch{1}, 1, {}}),
      StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("1 of 0 waves")));
  // No switch begins in the midst of another.
  EXPECT_FALSE(executor.Prepare(wire::Prepare{Epoch{2}, ep, {}}).ok);
}

// From whichever side, and from any layer on: the rest is done, the side turns,
// and the record says it.
TEST_F(SwitchExecutorTest, FinishesASwitchFromAnyLayer) {
  const Layout ep = ExpertParallel(), tp = TensorParallel(kRanks);
  ExpertsState before = kStart;
  uint64_t epoch = 1;
  for (int broken_at = 0; broken_at <= 3; ++broken_at) {
    const uint64_t loaded = Checksum(before);
    const ExpertsState begun = before.Towards(before.to == ep ? tp : ep);
    // All ranks do `broken_at` layers, as if they had been killed then.
    for (int i = 0; i < broken_at; ++i) {
      ExpertsState at = begun;
      at.layers_done = i;
      const int layer = at.LayerAt(experts_, i);
      for (Rank r = 0; r < kRanks; ++r) {
        ASSERT_THAT(
            PullSlot(*memories_[r],
                     {experts_.slot_bytes(), at.SourceSlot(experts_, layer),
                      at.TargetSlot(experts_, layer)},
                     PlanSlot(experts_, at.from, at.to, r), nullptr),
            IsOk());
      }
    }
    ExpertsState broken = begun;
    broken.layers_done = broken_at;
    EXPECT_EQ(Checksum(broken), loaded);
    std::vector<std::thread> threads;
    for (Rank r = 0; r < kRanks; ++r) {
      ASSERT_THAT(executors_[r]->GoOn(broken, Epoch{epoch}), IsOk());
      threads.emplace_back([&, r] {
        const auto done =
            executors_[r]->Finish(SwitchTail{Epoch{epoch}, 0, {}});
        EXPECT_THAT(done, IsOk());
      });
    }
    for (std::thread& thread : threads) thread.join();
    for (Rank r = 0; r < kRanks; ++r) {
      EXPECT_EQ(executors_[r]->experts(), begun.Finished());
      EXPECT_EQ(LoadSwitchProgress(*memories_[r]->own_signals()),
                (SwitchProgress{Epoch{epoch}, begun.side, 3, 0}));
    }
    EXPECT_EQ(Checksum(begun.Finished()), loaded);
    before = begun.Finished();
    ++epoch;
  }
}

class SpareSlotsTest : public SwitchExecutorTest {
 protected:
  SpareSlotsTest() : SwitchExecutorTest(2) {}
};

TEST_F(SpareSlotsTest, LayersAreCopiedAheadAndEveryWeightIsKept) {
  const uint64_t loaded = Checksum(kStart);
  Switch(Epoch{1}, TensorParallel(kRanks), ToTp());
  EXPECT_EQ(Checksum(ExpertsState::At(TensorParallel(kRanks), Side::kLow)),
            loaded);
  Switch(Epoch{2}, ExpertParallel(), ToEp());
  EXPECT_EQ(Checksum(kStart), loaded);
}

// A rank that gives up has nothing under way, and all that is done ahead can be
// done again.
TEST_F(SpareSlotsTest, WhatIsGivenUpIsFinishedFromTheLastBarrierOn) {
  const uint64_t loaded = Checksum(kStart);
  const Layout tp = TensorParallel(kRanks);
  ASSERT_TRUE(executors_[1]->Prepare(wire::Prepare{Epoch{1}, tp, {}}).ok);
  std::thread alone([&] {
    EXPECT_THAT(executors_[1]->Commit(wire::Commit{Epoch{1}, StepId{9}}),
                StatusIs(absl::StatusCode::kAborted));
  });
  // Rank 0 comes to the barrier in front of the layers, and no further.
  ASSERT_THAT(fences_[0]->Wait(), IsOk());
  fences_[0]->Abandon();
  alone.join();
  EXPECT_THAT(movers_[1]->Wait(),
              StatusIs(absl::StatusCode::kFailedPrecondition));
  const uint64_t next =
      std::max(fences_[0]->abandoned(), fences_[1]->abandoned()) + 1;
  std::vector<std::thread> threads;
  for (Rank r = 0; r < kRanks; ++r) {
    fences_[r]->GoOn(next);
    ASSERT_THAT(executors_[r]->GoOn(kStart.Towards(tp), Epoch{1}), IsOk());
    threads.emplace_back([&, r] {
      EXPECT_THAT(executors_[r]->Finish(SwitchTail{Epoch{1}, 0, {}}), IsOk());
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(Checksum(kStart.Towards(tp).Finished()), loaded);
}

TEST_F(SwitchExecutorTest, RanksCopyOnCoresOfTheirOwn) {
  const cpu_set_t all = AllowedHere();
  Switch(Epoch{1}, TensorParallel(kRanks), ToTp());
  ASSERT_EQ(barriers_[0]->allowed().size(), barriers_[1]->allowed().size());
  ASSERT_FALSE(barriers_[0]->allowed().empty());
  for (size_t i = 0; i < barriers_[0]->allowed().size(); ++i) {
    const cpu_set_t& zero = barriers_[0]->allowed()[i];
    const cpu_set_t& one = barriers_[1]->allowed()[i];
    cpu_set_t both;
    CPU_AND(&both, &zero, &one);
    // With a single core there is nothing to share out.
    EXPECT_EQ(CPU_COUNT(&both), CPU_COUNT(&all) >= kRanks ? 0 : 1);
  }
}

TEST_F(SwitchExecutorTest, TheWeightChecksumSeesBytesAndPlaces) {
  const uint64_t loaded = Checksum(kStart);
  std::byte* experts = memories_[1]->mutable_base(RegionKind::kExperts);
  std::byte* unit = experts + experts_.slot_bytes();
  const int64_t unit_bytes = experts_.unit_rows * experts_.row_bytes;
  unit[5] ^= std::byte{1};
  EXPECT_NE(Checksum(kStart), loaded);
  unit[5] ^= std::byte{1};
  EXPECT_EQ(Checksum(kStart), loaded);
  // Two units swapped: the same bytes in other places.
  std::swap_ranges(unit, unit + unit_bytes, unit + unit_bytes);
  EXPECT_NE(Checksum(kStart), loaded);
}

}  // namespace
}  // namespace moebius
