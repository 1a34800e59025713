#include "coordinator/decisions/page_allocator.h"

#include <random>
#include <set>
#include <vector>

#include "coordinator/decisions/page_tables.h"
#include "gtest/gtest.h"
#include "tests/status_matchers.h"

namespace moebius {
namespace {

using testing::HasSubstr;

TEST(PageAllocatorDeathTest, FreeingTwiceEndsTheProcess) {
  PageAllocator pages(4);
  const PageId page = pages.Allocate();
  pages.Free(page);
  EXPECT_DEATH(pages.Free(page), "is_taken");
  EXPECT_DEATH(pages.Free(99), "is_taken");
}

TEST(PageAllocatorDeathTest, TakingFromAnEmptyPoolEndsTheProcess) {
  PageAllocator pages(1);
  pages.Allocate();
  EXPECT_DEATH(pages.Allocate(), "check failed");
}

TEST(PageAllocator, HandsOutEveryPageOnce) {
  PageAllocator pages(100);
  std::set<PageId> seen;
  while (pages.num_free() > 0) {
    const PageId page = pages.Allocate();
    EXPECT_LT(page, 100u);
    EXPECT_TRUE(seen.insert(page).second);
    EXPECT_TRUE(pages.is_taken(page));
  }
  EXPECT_EQ(seen.size(), 100u);
}

TEST(PageAllocator, LastFreedIsNextTaken) {
  PageAllocator pages(8);
  const PageId a = pages.Allocate();
  const PageId b = pages.Allocate();
  pages.Free(a);
  pages.Free(b);
  EXPECT_EQ(pages.Allocate(), b);
  EXPECT_EQ(pages.Allocate(), a);
}

TEST(PageAllocator, ResetTakesExactlyWhatItIsTold) {
  PageAllocator pages(6);
  pages.Allocate();
  pages.Reset({3, 5});
  EXPECT_EQ(pages.num_free(), 4u);
  std::set<PageId> rest;
  while (pages.num_free() > 0) rest.insert(pages.Allocate());
  EXPECT_EQ(rest, (std::set<PageId>{0, 1, 2, 4}));
}

// ---- tables ----------------------------------------------------------------

const AttentionShape kShape{2, 4, 2};

TEST(PageTables, CountsBlocksByGroup) {
  PageTables ep(kShape, ExpertParallel(), 4, {9, 4});
  EXPECT_EQ(ep.num_groups(), 2);
  EXPECT_EQ(ep.free_blocks(0), 4u);  // two heads a block
  EXPECT_EQ(ep.free_blocks(1), 2u);
  PageTables tp(kShape, TensorParallel(2), 4, {9, 4});
  EXPECT_EQ(tp.num_groups(), 1);
  EXPECT_EQ(tp.free_blocks(0), 4u);  // the smaller pool, one head a block
}

// Two groups of two; each holds every head, a rank half of them.
TEST(PageTables, TheFullestRankOfAGroupSaysWhatIsLeft) {
  const AttentionShape shape{4, 8, 4};
  PageTables tables(shape, Layout{2}, 4, {20, 8, 40, 41});
  EXPECT_EQ(tables.num_groups(), 2);
  EXPECT_EQ(tables.free_blocks(0), 4u);
  EXPECT_EQ(tables.free_blocks(1), 20u);
  std::vector<PageRow> rows;
  tables.Grow(3, 0, 3, rows);
  tables.Grow(1, 1, 1, rows);
  EXPECT_EQ(tables.free_blocks(0), 1u);
  EXPECT_EQ(tables.free_blocks(1), 19u);
  EXPECT_EQ(tables.free_pages(0), 14u);
  EXPECT_EQ(tables.free_pages(3), 39u);
  const KvTable table = tables.TableOf(1);
  ASSERT_EQ(table.tables.size(), 2u);
  EXPECT_EQ(table.tables[0].rank, 2);
  EXPECT_EQ(table.tables[0].kv_begin, 0);
  EXPECT_EQ(table.tables[1].rank, 3);
  EXPECT_EQ(table.tables[1].kv_begin, 2);
  EXPECT_EQ(table.tables[1].num_kv, 2);
}

TEST(PageTables, ATableIsOfTheRanksOfOneGroup) {
  const AttentionShape shape{4, 8, 4};
  PageTables tables(shape, ExpertParallel(), 4, {8, 8, 8, 8});
  const auto on = [](Rank first, Rank second) {
    return KvTable{0, 1, {{first, 0, 2, {0, 1}}, {second, 2, 2, {0, 1}}}};
  };
  const Layout two{2};
  for (const auto& [first, second] : {std::pair<Rank, Rank>{1, 2},
                                      {0, 2},
                                      {1, 0},
                                      {2, 2},
                                      {3, 4},
                                      {-1, 0},
                                      {4, 5}}) {
    EXPECT_FALSE(tables.Replace(two, {on(first, second)}).ok())
        << first << " " << second;
  }
  EXPECT_EQ(tables.layout(), ExpertParallel());
  ASSERT_THAT(tables.Replace(two, {on(2, 3)}), IsOk());
  EXPECT_EQ(tables.TableOf(0), on(2, 3));
  EXPECT_EQ(tables.free_blocks(0), 4u);
  EXPECT_EQ(tables.free_blocks(1), 3u);
}

TEST(PageTables, RowsSayWhatTheTablesHold) {
  PageTables tables(kShape, TensorParallel(2), 4, {16, 16});
  std::vector<PageRow> rows;
  tables.Grow(2, 0, 3, rows);
  ASSERT_EQ(rows.size(), 6u);
  const KvTable table = tables.TableOf(2);
  EXPECT_EQ(table.num_blocks, 3);
  for (const PageRow& row : rows) {
    EXPECT_EQ(row.slot, 2u);
    ASSERT_EQ(row.pages.size(), 1u);
    EXPECT_EQ(table.tables[row.rank].pages[row.block], row.pages[0]);
  }
  tables.Release(2);
  EXPECT_EQ(tables.free_pages(0), 16u);
  EXPECT_EQ(tables.free_pages(1), 16u);
  EXPECT_EQ(tables.num_blocks(2), 0u);
}

TEST(PageTables, ReplaceRefusesWhatIsNoStateAndChangesNothing) {
  PageTables tables(kShape, ExpertParallel(), 4, {16, 16});
  std::vector<PageRow> rows;
  tables.Grow(0, 1, 2, rows);
  const KvTable before = tables.TableOf(0);
  const Layout tp = TensorParallel(2);
  const KvTable good{0, 1, {{0, 0, 1, {3}}, {1, 1, 1, {3}}}};

  KvTable bad = good;
  bad.slot = 4;
  EXPECT_FALSE(tables.Replace(tp, {bad}).ok());
  bad = good;
  bad.tables.pop_back();
  EXPECT_FALSE(tables.Replace(tp, {bad}).ok());
  bad = good;
  bad.tables[1].rank = 0;
  EXPECT_FALSE(tables.Replace(tp, {bad}).ok());
  bad = good;
  bad.tables[0].kv_begin = 1;
  EXPECT_FALSE(tables.Replace(tp, {bad}).ok());
  bad = good;
  bad.tables[0].pages = {3, 4};
  EXPECT_FALSE(tables.Replace(tp, {bad}).ok());
  bad = good;
  bad.tables[1].pages = {16};
  EXPECT_THAT(tables.Replace(tp, {bad}),
              StatusIs(absl::StatusCode::kInvalidArgument,
                       HasSubstr("page 16 of rank 1")));
  EXPECT_THAT(
      tables.Replace(tp, {good, good}),
      StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("named twice")));
  KvTable other = good;
  other.slot = 1;
  EXPECT_THAT(
      tables.Replace(tp, {good, other}),
      StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("held twice")));

  EXPECT_EQ(tables.layout(), ExpertParallel());
  EXPECT_EQ(tables.TableOf(0), before);
  EXPECT_EQ(tables.free_pages(1), 12u);

  EXPECT_THAT(tables.Replace(tp, {good}), IsOk());
  EXPECT_EQ(tables.TableOf(0), good);
  EXPECT_EQ(tables.free_pages(0), 15u);
  EXPECT_EQ(tables.free_pages(1), 15u);
}

}  // namespace
}  // namespace moebius
