// Switches between any two layouts, one after the other: real plans of the KV
// cache and real copies, with threads for ranks.
#include <cstring>
#include <random>
#include <set>
#include <utility>
#include <vector>

#include "gtest/gtest.h"
#include "tests/status_matchers.h"
#include "tests/unit/worker/switch/switch_ranks.h"

namespace moebius {
namespace {

constexpr int64_t kPageBytes = 64;
constexpr uint32_t kPages = 64, kSlots = 6;
constexpr int kSequences = 6, kMostBlocks = 3;

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

class Group : private SwitchRanks {
 public:
  Group(const AttentionShape& attention, ExpertsState state)
      : SwitchRanks(attention, Experts(attention.num_ranks),
                    {kPageBytes, kPages, kSlots}),
        state_(state) {
    for (uint32_t slot = 0; slot < kSequences; ++slot) AddSequence(slot);
    Start(state_);
  }

  Layout layout() const { return state_.to; }
  uint64_t Checksum() const { return SwitchRanks::Checksum(state_); }

  // Plans as the coordinator does, and copies on every rank.
  void SwitchTo(Layout target) {
    const auto plan = PlanKv(attention_, layout(), target, tables_,
                             std::vector<int64_t>(kSequences, 20), FreePages());
    ASSERT_THAT(plan, IsOk());
    const std::vector<wire::Switched> switched =
        Switch(Epoch{++epoch_}, target, *plan);
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

  ExpertsState state_;
  uint64_t epoch_ = 0;
  std::vector<KvTable> tables_;
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
