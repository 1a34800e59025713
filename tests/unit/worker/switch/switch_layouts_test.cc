// Switches between any two layouts, one after the other: real plans of the KV
// cache and real copies, with threads for ranks.
#include <cstring>
#include <memory>
#include <numeric>
#include <random>
#include <set>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/time/time.h"
#include "gtest/gtest.h"
#include "tests/status_matchers.h"
#include "worker/peers/group_fence.h"
#include "worker/switch/switch_executor.h"
#include "worker/switch/thread_mover.h"
#include "worker/switch/weight_checksum.h"

namespace moebius {
namespace {

constexpr int64_t kPageBytes = 64;
constexpr uint32_t kPages = 64, kSlots = 6;
constexpr int kSequences = 6, kMostBlocks = 3;
constexpr int32_t kVocabulary = 100;

ExpertShape Experts(int num_ranks) {
  ExpertShape shape;
  shape.num_ranks = num_ranks;
  shape.num_moe_layers = 3;
  shape.num_experts = 2 * num_ranks;
  shape.intermediate_rows = 16 * num_ranks;
  shape.row_bytes = 32;
  return shape;
}

// What a page holds of a sequence.
std::byte MarkOf(uint32_t slot, int block, int head) {
  return static_cast<std::byte>((slot * kMostBlocks + block) * 8 + head + 1);
}

class Group {
 public:
  Group(const AttentionShape& attention, ExpertsState state)
      : attention_(attention),
        experts_(Experts(attention.num_ranks)),
        state_(state) {
    MemoryGeometry geometry;
    geometry[RegionKind::kExperts] = experts_.region_bytes();
    geometry[RegionKind::kKv] = kPages * kPageBytes;
    auto memories = WorkerMemory::CreateInProcess(ranks(), geometry);
    EXPECT_THAT(memories, IsOk());
    memories_ = *std::move(memories);
    for (Rank r = 0; r < ranks(); ++r) AddRank(r);
    for (uint32_t slot = 0; slot < kSequences; ++slot) AddSequence(slot);
  }

  int ranks() const { return attention_.num_ranks; }
  Layout layout() const { return state_.to; }

  uint64_t Checksum() const {
    uint64_t sum = 0;
    for (Rank r = 0; r < ranks(); ++r) {
      sum +=
          WeightChecksum(experts_, state_, r,
                         memories_[r]->base(RegionKind::kExperts, r), nullptr);
    }
    return sum;
  }

  // Plans as the coordinator does, and copies on every rank.
  void SwitchTo(Layout target) {
    const auto plan = PlanKv(attention_, layout(), target, tables_,
                             std::vector<int64_t>(kSequences, 20), FreePages());
    ASSERT_THAT(plan, IsOk());
    const Epoch epoch{++epoch_};
    std::vector<wire::Switched> switched(ranks());
    std::vector<std::thread> threads;
    for (Rank r = 0; r < ranks(); ++r) {
      threads.emplace_back([&, r] {
        const wire::Prepared prepared =
            executors_[r]->Prepare(wire::Prepare{epoch, target, *plan});
        EXPECT_TRUE(prepared.ok) << prepared.reason;
        const auto done = executors_[r]->Commit(wire::Commit{epoch, StepId{9}});
        EXPECT_THAT(done, IsOk());
        if (done.ok()) switched[r] = *done;
      });
    }
    for (std::thread& thread : threads) thread.join();
    for (const wire::Switched& one : switched) {
      EXPECT_EQ(one.checksum, switched[0].checksum);
    }
    tables_ = plan->tables;
    state_ = state_.Towards(target).Finished();
  }

  // Every rank knows the pages of its groups' sequences, with what belongs
  // there, and no others.
  void ExpectAllIsThere() const {
    for (Rank r = 0; r < ranks(); ++r) {
      ASSERT_EQ(executors_[r]->experts(), state_);
      const std::byte* const kv = memories_[r]->base(RegionKind::kKv, r);
      for (const KvTable& table : tables_) {
        const Sequence& here = *sequences_[r]->Find(table.slot);
        ASSERT_EQ(slots_[r]->At(table.slot).pages, here.pages);
        const Rank first = table.tables[0].rank;
        if (layout().group_of(r) != layout().group_of(first)) {
          ASSERT_EQ(here.num_blocks(), 0);
          continue;
        }
        const HeadRange heads = HeadsOf(attention_, layout(), r);
        ASSERT_EQ(here.num_kv, heads.num_kv());
        ASSERT_EQ(here.num_blocks(), table.num_blocks);
        for (int block = 0; block < table.num_blocks; ++block) {
          for (int h = 0; h < here.num_kv; ++h) {
            const PageId page = here.pages[block * here.num_kv + h];
            ASSERT_EQ(kv[page * kPageBytes + 7],
                      MarkOf(table.slot, block, heads.kv_begin + h))
                << "rank " << r << ", slot " << table.slot;
          }
        }
      }
    }
  }

 private:
  void AddRank(Rank r) {
    std::byte* const experts = memories_[r]->mutable_base(RegionKind::kExperts);
    for (int64_t i = 0; i < experts_.region_bytes(); ++i) {
      experts[i] = static_cast<std::byte>((i * 7 + i / 251 + r * 131) & 255);
    }
    fences_.push_back(std::make_unique<SignalsFence>(
        r, memories_[r]->all_signals(), BarrierOptions{.spin_us = 10},
        absl::Seconds(20)));
    slots_.push_back(std::make_unique<DeviceSlots>(r, kSlots, kVocabulary));
    sequences_.push_back(std::make_unique<SequenceTable>(
        SequenceTable::Options{r, ranks(), attention_, kSlots, 16, kPages, 64,
                               kVocabulary},
        slots_[r].get()));
    movers_.push_back(
        std::make_unique<ThreadMover>(memories_[r].get(), kPageBytes, nullptr));
    executors_.push_back(std::make_unique<SwitchExecutor>(SwitchContext{
        r, ranks(), experts_, attention_, kPages, memories_[r].get(),
        sequences_[r].get(), fences_[r].get(), nullptr, movers_[r].get()}));
    EXPECT_THAT(executors_[r]->GoOn(state_, Epoch{0}), IsOk());
  }

  void AddSequence(uint32_t slot) {
    const int group = static_cast<int>(slot) % layout().num_groups(ranks());
    const std::vector<std::vector<PageId>> free_pages = FreePages();
    RestoredSequence sequence;
    sequence.admission = {slot, RequestId{slot + 1}, 3, {5, 6, 7}, {}};
    KvTable& table = sequence.table;
    table.slot = slot;
    table.num_blocks = 1 + static_cast<int>(slot) % kMostBlocks;
    for (Rank r = layout().first_rank(group);
         r < layout().first_rank(group + 1); ++r) {
      const HeadRange heads = HeadsOf(attention_, layout(), r);
      RankTable& of_rank = table.tables.emplace_back(
          RankTable{r, heads.kv_begin, heads.num_kv(), {}});
      std::byte* const kv = memories_[r]->mutable_base(RegionKind::kKv);
      for (int block = 0; block < table.num_blocks; ++block) {
        for (int h = heads.kv_begin; h < heads.kv_end; ++h) {
          const PageId page = free_pages[r][of_rank.pages.size()];
          of_rank.pages.push_back(page);
          std::memset(kv + page * kPageBytes,
                      static_cast<int>(MarkOf(slot, block, h)), kPageBytes);
        }
      }
    }
    tables_.push_back(table);
    for (const auto& rank : sequences_) {
      EXPECT_THAT(rank->Put(sequence), IsOk());
    }
  }

  std::vector<std::vector<PageId>> FreePages() const {
    std::vector<std::vector<PageId>> pages;
    for (Rank r = 0; r < ranks(); ++r) {
      std::set<PageId> held;
      for (const KvTable& table : tables_) {
        for (const RankTable& one : table.tables) {
          if (one.rank == r) held.insert(one.pages.begin(), one.pages.end());
        }
      }
      std::vector<PageId>& of_rank = pages.emplace_back();
      for (PageId page = 0; page < kPages; ++page) {
        if (!held.contains(page)) of_rank.push_back(page);
      }
    }
    return pages;
  }

  const AttentionShape attention_;
  const ExpertShape experts_;
  ExpertsState state_;
  uint64_t epoch_ = 0;
  std::vector<KvTable> tables_;
  std::vector<std::unique_ptr<WorkerMemory>> memories_;
  std::vector<std::unique_ptr<CpuFence>> fences_;
  std::vector<std::unique_ptr<DeviceSlots>> slots_;
  std::vector<std::unique_ptr<SequenceTable>> sequences_;
  std::vector<std::unique_ptr<Mover>> movers_;
  std::vector<std::unique_ptr<SwitchExecutor>> executors_;
};

// Every pair of layouts follows one another; KV heads are divided and
// replicated.
TEST(SwitchLayouts, AnyWalkKeepsEveryWeightAndEveryPage) {
  std::mt19937 random(1);
  for (const AttentionShape& shape :
       {AttentionShape{4, 8, 8}, AttentionShape{4, 8, 2},
        AttentionShape{6, 12, 6}, AttentionShape{6, 12, 1},
        AttentionShape{8, 8, 4}}) {
    const std::vector<Layout> layouts = LayoutsOf(shape);
    Group group(shape,
                ExpertsState::AtHome(layouts[random() % layouts.size()]));
    const uint64_t loaded = group.Checksum();
    std::set<std::pair<int, int>> seen;
    const size_t pairs = layouts.size() * (layouts.size() - 1);
    for (int turn = 0; turn < 100 && seen.size() < pairs; ++turn) {
      const Layout from = group.layout();
      // One that has not followed this one yet, if there is any.
      Layout to = layouts[random() % layouts.size()];
      for (const Layout other : layouts) {
        if (!seen.contains({from.tp_size, other.tp_size}) && other != from) {
          to = other;
        }
      }
      if (to == from) continue;
      SCOPED_TRACE(testing::Message()
                   << shape.num_ranks << " ranks, " << shape.num_kv_heads
                   << " KV heads, " << from.tp_size << " to " << to.tp_size);
      ASSERT_NO_FATAL_FAILURE(group.SwitchTo(to));
      ASSERT_NO_FATAL_FAILURE(group.ExpectAllIsThere());
      ASSERT_EQ(group.Checksum(), loaded);
      seen.insert({from.tp_size, to.tp_size});
    }
    EXPECT_EQ(seen.size(), pairs);
  }
}

}  // namespace
}  // namespace moebius
