#include "common/layout/kv_plan.h"

#include <algorithm>
#include <array>
#include <map>
#include <numeric>
#include <random>
#include <set>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "tests/status_matchers.h"

namespace moebius {
namespace {

using testing::HasSubstr;

// What a head page holds: which block of which head of which request.
struct Content {
  uint32_t slot = 0;
  int block = -1;
  int head = -1;
  friend bool operator==(const Content&, const Content&) = default;
};

// The pools of a group, and who holds what.
class Pools {
 public:
  Pools(const AttentionShape& shape, std::vector<int> sizes)
      : shape_(shape), sizes_(std::move(sizes)) {
    for (const int size : sizes_) {
      content_.emplace_back(size);
      std::vector<PageId> free(size);
      std::iota(free.begin(), free.end(), 0u);
      free_.push_back(std::move(free));
    }
  }

  void Shuffle(std::mt19937& random) {
    for (auto& free : free_) std::shuffle(free.begin(), free.end(), random);
  }

  // Adds a request in a group of the layout; false when it has no room.
  bool Add(Layout layout, uint32_t slot, int blocks, int group) {
    const Rank first = layout.first_rank(group);
    for (Rank r = first; r < first + layout.tp_size; ++r) {
      const size_t need = size_t(blocks) * HeadsOf(shape_, layout, r).num_kv();
      if (free_[r].size() < need) return false;
    }
    KvTable table{slot, blocks, {}};
    for (Rank r = first; r < first + layout.tp_size; ++r) {
      const HeadRange heads = HeadsOf(shape_, layout, r);
      RankTable& t = table.tables.emplace_back(
          RankTable{r, heads.kv_begin, heads.num_kv(), {}});
      for (int block = 0; block < blocks; ++block) {
        for (int h = heads.kv_begin; h < heads.kv_end; ++h) {
          const PageId page = free_[r].back();
          free_[r].pop_back();
          content_[r][page] = {slot, block, h};
          t.pages.push_back(page);
        }
      }
    }
    tables_.push_back(std::move(table));
    kv_tokens_.push_back(int64_t{blocks} * kPageTokens - 3);
    return true;
  }

  absl::StatusOr<KvPlan> Plan(Layout from, Layout to) const {
    return PlanKv(shape_, from, to, tables_, kv_tokens_, free_);
  }

  // Runs the waves, each in a random order, as workers that pull would: the
  // page must still hold what it held when the wave began.
  void Execute(const KvPlan& plan, std::mt19937& random) {
    std::vector<std::set<PageId>> free(shape_.num_ranks);
    for (Rank r = 0; r < shape_.num_ranks; ++r) {
      free[r].insert(free_[r].begin(), free_[r].end());
    }
    // Pages whose content somebody will still read or keep.
    std::map<std::pair<Rank, PageId>, int> needed;
    for (const auto& wave : plan.waves) {
      for (const PageMove& m : wave) ++needed[{m.src_rank, m.src_page}];
    }
    for (auto wave : plan.waves) {
      ASSERT_FALSE(wave.empty());
      std::set<std::pair<Rank, PageId>> written, read;
      for (const PageMove& m : wave) {
        ASSERT_NE(m.src_rank, m.dst_rank);
        ASSERT_LT(m.dst_page, content_[m.dst_rank].size());
        ASSERT_TRUE(written.insert({m.dst_rank, m.dst_page}).second)
            << "two moves write one page";
        read.insert({m.src_rank, m.src_page});
      }
      for (const auto& page : written) {
        ASSERT_FALSE(read.contains(page)) << "a wave overwrites its source";
        ASSERT_TRUE(needed.find(page) == needed.end() || needed[page] == 0)
            << "a page with readers is overwritten";
      }
      std::shuffle(wave.begin(), wave.end(), random);
      for (const PageMove& m : wave) {
        content_[m.dst_rank][m.dst_page] = content_[m.src_rank][m.src_page];
        --needed[{m.src_rank, m.src_page}];
      }
    }
  }

  // Tables are the new layout's, every page holds what its place says, no
  // page is held twice. Then makes them the present ones.
  void Adopt(Layout to, const KvPlan& plan) {
    ASSERT_EQ(plan.tables.size(), tables_.size());
    std::vector<std::set<PageId>> owned(shape_.num_ranks);
    for (size_t q = 0; q < plan.tables.size(); ++q) {
      const KvTable& table = plan.tables[q];
      ASSERT_EQ(table.slot, tables_[q].slot);
      ASSERT_EQ(table.num_blocks, tables_[q].num_blocks);
      // A group that has ranks of the old one.
      ASSERT_EQ(table.tables.size(), size_t(to.tp_size));
      const Rank first = table.tables[0].rank;
      ASSERT_EQ(to.part_of(first), 0);
      ASSERT_LE(first, tables_[q].tables.back().rank);
      ASSERT_LT(tables_[q].tables[0].rank, first + to.tp_size);
      for (size_t i = 0; i < table.tables.size(); ++i) {
        const RankTable& t = table.tables[i];
        ASSERT_EQ(t.rank, first + static_cast<Rank>(i));
        const HeadRange heads = HeadsOf(shape_, to, t.rank);
        ASSERT_EQ(t.kv_begin, heads.kv_begin);
        ASSERT_EQ(t.num_kv, heads.num_kv());
        ASSERT_EQ(t.pages.size(), size_t(table.num_blocks) * t.num_kv);
        for (int block = 0; block < table.num_blocks; ++block) {
          for (int h = 0; h < t.num_kv; ++h) {
            const PageId page = t.pages[block * t.num_kv + h];
            ASSERT_LT(page, content_[t.rank].size());
            ASSERT_TRUE(owned[t.rank].insert(page).second)
                << "held twice: page " << page << " of rank " << t.rank;
            ASSERT_EQ(content_[t.rank][page],
                      (Content{table.slot, block, t.kv_begin + h}));
          }
        }
      }
    }
    for (Rank r = 0; r < shape_.num_ranks; ++r) {
      free_[r].clear();
      for (PageId page = 0; page < static_cast<PageId>(sizes_[r]); ++page) {
        if (!owned[r].contains(page)) free_[r].push_back(page);
      }
      ASSERT_EQ(free_[r].size() + owned[r].size(), size_t(sizes_[r]));
    }
    tables_ = plan.tables;
  }

  void RemoveRandom(std::mt19937& random) {
    if (tables_.empty()) return;
    const size_t q = random() % tables_.size();
    for (const RankTable& t : tables_[q].tables) {
      free_[t.rank].insert(free_[t.rank].end(), t.pages.begin(), t.pages.end());
    }
    tables_.erase(tables_.begin() + q);
    kv_tokens_.erase(kv_tokens_.begin() + q);
  }

  std::vector<KvTable> tables_;
  std::vector<int64_t> kv_tokens_;
  std::vector<std::vector<PageId>> free_;

 private:
  AttentionShape shape_;
  std::vector<int> sizes_;
  std::vector<std::vector<Content>> content_;
};

// ---- refusals --------------------------------------------------------------

TEST(PlanKv, RefusesWhenReplicasDoNotFitAndChangesNothing) {
  // 4 ranks share 2 KV heads: TP keeps each page twice, on every rank 1 of
  // the 2 pages of each block; 5 blocks on each of 4 ranks are 20 pages.
  const AttentionShape shape{4, 4, 2};
  Pools pools(shape, {12, 12, 12, 12});
  for (Rank r = 0; r < 4; ++r) {
    ASSERT_TRUE(pools.Add(ExpertParallel(), r, 5, r));
  }
  const auto tables = pools.tables_;
  const auto free = pools.free_;
  EXPECT_THAT(
      pools.Plan(ExpertParallel(), TensorParallel(4)),
      StatusIs(
          absl::StatusCode::kResourceExhausted,
          HasSubstr("rank 0 would hold 20 head pages and has room for 12")));
  EXPECT_EQ(pools.tables_, tables);
  EXPECT_EQ(pools.free_, free);
}

TEST(PlanKv, RefusesWhenNoRankCanOwnTheRequest) {
  const AttentionShape shape{2, 2, 2};
  Pools pools(shape, {9, 9});
  ASSERT_TRUE(pools.Add(TensorParallel(2), 0, 6, 0));  // 12 pages in EP
  EXPECT_THAT(pools.Plan(TensorParallel(2), ExpertParallel()),
              StatusIs(absl::StatusCode::kResourceExhausted,
                       HasSubstr("needs 12 head pages")));
}

TEST(PlanKv, RefusesWhenNotOnePageIsFree) {
  const AttentionShape shape{2, 2, 2};
  Pools pools(shape, {8, 8});
  ASSERT_TRUE(pools.Add(ExpertParallel(), 0, 4, 0));
  ASSERT_TRUE(pools.Add(ExpertParallel(), 1, 4, 1));
  EXPECT_THAT(pools.Plan(ExpertParallel(), TensorParallel(2)),
              StatusIs(absl::StatusCode::kResourceExhausted,
                       HasSubstr("no free head page")));
}

TEST(PlanKv, RefusesMoreWavesThanTheBound) {
  // One free page on either side moves one page of each a wave.
  const AttentionShape shape{2, 2, 2};
  const int blocks = kMaxKvWaves + 1;
  Pools pools(shape, {2 * blocks + 1, 2 * blocks + 1});
  ASSERT_TRUE(pools.Add(ExpertParallel(), 0, blocks, 0));
  ASSERT_TRUE(pools.Add(ExpertParallel(), 1, blocks, 1));
  EXPECT_THAT(pools.Plan(ExpertParallel(), TensorParallel(2)),
              StatusIs(absl::StatusCode::kResourceExhausted,
                       HasSubstr("after 64 waves 2 of 130")));
}

// ---- what a plan is --------------------------------------------------------

TEST(PlanKv, FullPoolsMoveInWavesThroughOneFreePage) {
  std::mt19937 random(1);
  const AttentionShape shape{2, 2, 2};
  Pools pools(shape, {9, 9});
  ASSERT_TRUE(pools.Add(ExpertParallel(), 0, 4, 0));
  ASSERT_TRUE(pools.Add(ExpertParallel(), 1, 4, 1));
  const auto plan = pools.Plan(ExpertParallel(), TensorParallel(2));
  ASSERT_THAT(plan, IsOk());
  EXPECT_EQ(plan->waves.size(), 4u);
  EXPECT_EQ(plan->num_moves(), 8);
  ASSERT_NO_FATAL_FAILURE(pools.Execute(*plan, random));
  ASSERT_NO_FATAL_FAILURE(pools.Adopt(TensorParallel(2), *plan));
}

TEST(PlanKv, SourcesOnFullRanksGoFirst) {
  // Rank 1 has one free page, rank 2 none; rank 0 has plenty. Were rank 0's
  // page taken first, ranks 1 and 2 would be stuck with theirs.
  std::mt19937 random(1);
  const AttentionShape shape{3, 3, 3};
  Pools pools(shape, {12, 4, 3});
  ASSERT_TRUE(pools.Add(ExpertParallel(), 0, 1, 0));
  ASSERT_TRUE(pools.Add(ExpertParallel(), 1, 1, 1));
  ASSERT_TRUE(pools.Add(ExpertParallel(), 2, 1, 2));
  const auto plan = pools.Plan(ExpertParallel(), TensorParallel(3));
  ASSERT_THAT(plan, IsOk());
  ASSERT_NO_FATAL_FAILURE(pools.Execute(*plan, random));
  ASSERT_NO_FATAL_FAILURE(pools.Adopt(TensorParallel(3), *plan));
}

TEST(PlanKv, OneWaveWhenPagesAreFree) {
  const AttentionShape shape{4, 8, 4};
  Pools pools(shape, {64, 64, 64, 64});
  for (uint32_t q = 0; q < 4; ++q) {
    ASSERT_TRUE(pools.Add(ExpertParallel(), q, 4, static_cast<Rank>(q)));
  }
  const auto plan = pools.Plan(ExpertParallel(), TensorParallel(4));
  ASSERT_THAT(plan, IsOk());
  EXPECT_EQ(plan->waves.size(), 1u);
  EXPECT_EQ(plan->num_moves(), 4 * 4 * 3);  // a quarter stays
}

TEST(PlanKv, PagesThatStayKeepTheirIds) {
  const AttentionShape shape{2, 4, 2};
  Pools pools(shape, {32, 32});
  ASSERT_TRUE(pools.Add(ExpertParallel(), 0, 3, 1));
  const auto plan = pools.Plan(ExpertParallel(), TensorParallel(2));
  ASSERT_THAT(plan, IsOk());
  for (int block = 0; block < 3; ++block) {
    EXPECT_EQ(plan->tables[0].tables[1].pages[block],
              pools.tables_[0].tables[0].pages[block * 2 + 1]);
  }
}

TEST(PlanKv, SameLayoutMovesNothing) {
  const AttentionShape shape{2, 4, 2};
  Pools pools(shape, {32, 32});
  ASSERT_TRUE(pools.Add(ExpertParallel(), 0, 3, 1));
  const auto plan = pools.Plan(ExpertParallel(), ExpertParallel());
  ASSERT_THAT(plan, IsOk());
  EXPECT_EQ(plan->num_moves(), 0);
  EXPECT_EQ(plan->tables, pools.tables_);
}

TEST(PlanKv, OwnersAreTheLargestToTheLeastLoaded) {
  const AttentionShape shape{2, 2, 2};
  Pools pools(shape, {200, 200});
  const int blocks[] = {3, 9, 4, 2};
  for (uint32_t q = 0; q < 4; ++q) {
    ASSERT_TRUE(pools.Add(TensorParallel(2), q, blocks[q], 0));
  }
  const auto plan = pools.Plan(TensorParallel(2), ExpertParallel());
  ASSERT_THAT(plan, IsOk());
  // 9 -> 0; 4, 3 -> 1; then 2 goes to rank 1, which has 106 tokens to rank 0's
  // 141.
  EXPECT_EQ(plan->tables[1].tables[0].rank, 0);
  EXPECT_EQ(plan->tables[2].tables[0].rank, 1);
  EXPECT_EQ(plan->tables[0].tables[0].rank, 1);
  EXPECT_EQ(plan->tables[3].tables[0].rank, 1);
}

TEST(PlanKv, ReplicasSendEvenShares) {
  // 4 ranks, 1 KV head: every rank holds every block. The owner keeps its own;
  // with one head nothing moves. With 2 heads the other head has 2 replicas.
  const AttentionShape one{4, 4, 1};
  Pools all(one, {64, 64, 64, 64});
  ASSERT_TRUE(all.Add(TensorParallel(4), 0, 8, 0));
  const auto none = all.Plan(TensorParallel(4), ExpertParallel());
  ASSERT_THAT(none, IsOk());
  EXPECT_EQ(none->num_moves(), 0);

  const AttentionShape two{4, 4, 2};
  Pools pools(two, {64, 64, 64, 64});
  ASSERT_TRUE(pools.Add(TensorParallel(4), 0, 8, 0));
  const auto plan = pools.Plan(TensorParallel(4), ExpertParallel());
  ASSERT_THAT(plan, IsOk());
  std::map<Rank, int> sent;
  for (const auto& wave : plan->waves) {
    for (const PageMove& m : wave) ++sent[m.src_rank];
  }
  EXPECT_EQ(sent, (std::map<Rank, int>{{2, 4}, {3, 4}}));
}

TEST(PlanKv, AGroupWithinTheNewOneHasNoChoice) {
  // tp2 to tp4 of 8 ranks, the lower half nearly full, the upper one empty.
  const AttentionShape shape{8, 8, 4};
  Pools pools(shape, std::vector<int>(8, 64));
  for (uint32_t q = 0; q < 6; ++q) {
    ASSERT_TRUE(pools.Add(Layout{2}, q, 8, static_cast<int>(q % 2)));
  }
  const auto plan = pools.Plan(Layout{2}, Layout{4});
  ASSERT_THAT(plan, IsOk());
  for (const KvTable& table : plan->tables) EXPECT_EQ(table.tables[0].rank, 0);
}

TEST(PlanKv, AGroupOfSeveralNewOnesChoosesAmongThem) {
  // tp4 to tp2 of 8 ranks: groups 2 and 3 lie in the old group 1.
  const AttentionShape shape{8, 8, 4};
  Pools pools(shape, std::vector<int>(8, 64));
  const int blocks[] = {3, 9, 4, 2};
  for (uint32_t q = 0; q < 4; ++q) {
    ASSERT_TRUE(pools.Add(Layout{4}, q, blocks[q], 1));
  }
  const auto plan = pools.Plan(Layout{4}, Layout{2});
  ASSERT_THAT(plan, IsOk());
  std::vector<Rank> first;
  for (const KvTable& table : plan->tables) {
    first.push_back(table.tables[0].rank);
  }
  EXPECT_EQ(first, (std::vector<Rank>{6, 4, 6, 6}));
}

TEST(PlanKv, ThoseWithoutAChoiceAreCountedFirst) {
  // tp2 to tp3 of 6 ranks: the middle group lies across both new ones.
  const AttentionShape shape{6, 6, 6};
  Pools pools(shape, std::vector<int>(6, 64));
  ASSERT_TRUE(pools.Add(Layout{2}, 0, 5, 1));
  ASSERT_TRUE(pools.Add(Layout{2}, 1, 2, 0));
  const auto plan = pools.Plan(Layout{2}, Layout{3});
  ASSERT_THAT(plan, IsOk());
  EXPECT_EQ(plan->tables[0].tables[0].rank, 3);
  EXPECT_EQ(plan->tables[1].tables[0].rank, 0);
}

TEST(PlanKv, RefusesWhenNoGroupInReachHasRoom) {
  // Ranks 4 to 7 have room, but a request of the lower half cannot go there.
  const AttentionShape shape{8, 8, 8};
  Pools pools(shape, {12, 12, 12, 12, 64, 64, 64, 64});
  ASSERT_TRUE(pools.Add(Layout{4}, 0, 4, 0));
  EXPECT_THAT(pools.Plan(Layout{4}, Layout{2}),
              StatusIs(absl::StatusCode::kResourceExhausted,
                       HasSubstr("does not fit in tp2: a request of 4 blocks "
                                 "needs 16 head pages on each of 2 ranks")));
}

// ---- random walk -----------------------------------------------------------

struct WalkFigures {
  int done = 0, refused = 0, in_waves = 0;
  std::set<std::array<int, 3>> pairs;  // ranks, from, to
};

void Walk(const AttentionShape& shape, bool tight, uint32_t seed,
          WalkFigures& figures) {
  std::mt19937 random(seed);
  std::vector<int> sizes;
  for (Rank r = 0; r < shape.num_ranks; ++r) {
    sizes.push_back((tight ? 24 : 120) + static_cast<int>(random() % 17));
  }
  Pools pools(shape, sizes);
  pools.Shuffle(random);
  const std::vector<Layout> layouts = LayoutsOf(shape);
  Layout layout = layouts[random() % layouts.size()];
  uint32_t next_slot = 0;
  for (int turn = 0; turn < 30; ++turn) {
    for (uint32_t i = random() % 4; i > 0; --i) pools.RemoveRandom(random);
    // Fill until a few requests have found no room.
    for (int failed = 0; failed < (tight ? 6 : 1);) {
      const int blocks = 1 + static_cast<int>(random() % (tight ? 4 : 6));
      const int group =
          static_cast<int>(random() % layout.num_groups(shape.num_ranks));
      if (!pools.Add(layout, next_slot++, blocks, group)) ++failed;
      if (!tight && random() % 3 == 0) break;
    }
    Layout target = layout;
    while (target == layout) target = layouts[random() % layouts.size()];
    const auto tables = pools.tables_;
    const auto free = pools.free_;
    const auto plan = pools.Plan(layout, target);
    ASSERT_EQ(pools.tables_, tables);
    ASSERT_EQ(pools.free_, free);
    if (!plan.ok()) {
      ASSERT_THAT(plan, StatusIs(absl::StatusCode::kResourceExhausted));
      ++figures.refused;
      pools.RemoveRandom(random);
      continue;
    }
    ASSERT_LE(plan->waves.size(), size_t{kMaxKvWaves});
    ASSERT_NO_FATAL_FAILURE(pools.Execute(*plan, random));
    ASSERT_NO_FATAL_FAILURE(pools.Adopt(target, *plan));
    figures.pairs.insert({shape.num_ranks, layout.tp_size, target.tp_size});
    layout = target;
    ++figures.done;
    if (plan->waves.size() > 1) ++figures.in_waves;
  }
}

TEST(PlanKv, RandomWalkKeepsEveryPage) {
  WalkFigures loose, tight;
  size_t pairs = 0;
  for (int n = 2; n <= kMaxRanks; ++n) {
    for (const int kv : {1, 2, 3, 4, 6, 8, 12, 16, n}) {
      const AttentionShape shape{n, kv * n, kv};
      if (!Validate(shape).ok()) continue;
      for (uint32_t seed = 0; seed < 4; ++seed) {
        SCOPED_TRACE(testing::Message()
                     << n << " ranks, " << kv << " KV heads, seed " << seed);
        ASSERT_NO_FATAL_FAILURE(Walk(shape, false, seed, loose));
        ASSERT_NO_FATAL_FAILURE(Walk(shape, true, seed, tight));
      }
    }
    // With n KV heads every divisor is a layout.
    const size_t layouts = LayoutsOf({n, n, n}).size();
    pairs += layouts * (layouts - 1);
  }
  // The walk has seen all that it is for.
  EXPECT_EQ(loose.pairs.size(), pairs);
  EXPECT_GT(tight.pairs.size(), pairs * 9 / 10);
  EXPECT_GT(loose.done, 2000);
  EXPECT_GT(tight.done, 500);
  EXPECT_GT(tight.refused, 100);
  EXPECT_GT(tight.in_waves, 100);
}

}  // namespace
}  // namespace moebius
