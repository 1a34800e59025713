#include "common/layout/blocks.h"

#include <vector>

#include "gtest/gtest.h"
#include "tests/status_matchers.h"

namespace moebius {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

constexpr int kSizes[] = {1, 2, 3, 4, 6, 8, 12, 16};

std::vector<Layout> LayoutsOf(int num_ranks) {
  std::vector<Layout> layouts;
  for (int t = 1; t <= num_ranks; ++t) {
    if (Layout{t}.divides(num_ranks)) layouts.push_back(Layout{t});
  }
  return layouts;
}

// With and without padding.
std::vector<ExpertShape> Shapes() {
  std::vector<ExpertShape> shapes;
  for (const int n : kSizes) {
    for (const int experts : {1, 5, 12, 48}) {
      for (const int rows : {16, 20, 48}) {
        for (const int unit : {1, 4}) {
          ExpertShape shape{n, 3, experts, rows, unit, 4};
          EXPECT_THAT(Validate(shape), IsOk());
          shapes.push_back(shape);
        }
      }
    }
  }
  return shapes;
}

template <typename Visit>
void ForEachPair(Visit visit) {
  for (const ExpertShape& shape : Shapes()) {
    for (const Layout from : LayoutsOf(shape.num_ranks)) {
      for (const Layout to : LayoutsOf(shape.num_ranks)) {
        ASSERT_NO_FATAL_FAILURE(visit(shape, from, to));
      }
    }
  }
}

// ---- refusals --------------------------------------------------------------

TEST(ExpertShape, RefusesNonsenseNumbers) {
  EXPECT_FALSE(Validate(ExpertShape{0, 2, 8, 32, 16, 4}).ok());
  EXPECT_FALSE(Validate(ExpertShape{kMaxRanks + 1, 2, 18, 144, 16, 4}).ok());
  EXPECT_FALSE(Validate(ExpertShape{2, -1, 8, 32, 16, 4}).ok());
  EXPECT_FALSE(Validate(ExpertShape{2, 2, 0, 32, 16, 4}).ok());
  EXPECT_FALSE(Validate(ExpertShape{2, 2, 8, 0, 16, 4}).ok());
  EXPECT_FALSE(Validate(ExpertShape{2, 2, 8, 32, 0, 4}).ok());
  EXPECT_FALSE(Validate(ExpertShape{2, 2, 8, 32, 16, 0}).ok());
  EXPECT_FALSE(Validate(ExpertShape{2, 2, -8, 32, 16, 4}).ok());
  EXPECT_THAT(
      Validate(ExpertShape{2, 2, 8, 32, 16, 4, 0}),
      StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("0 spare slots")));
  EXPECT_FALSE(Validate(ExpertShape{2, 2, 8, 32, 16, 4, 9}).ok());
}

TEST(ExpertShape, RefusesSizesBeyond64Bits) {
  EXPECT_THAT(Validate(ExpertShape{2, 1 << 20, 1 << 24, 1 << 24, 16, 1 << 20}),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("2^62")));
  EXPECT_FALSE(Validate(ExpertShape{2, 2, 1 << 30, 1 << 30, 16, 4}).ok());
}

TEST(ExpertShape, AcceptsDenseModels) {
  const ExpertShape dense{4, 0, 0, 0, 16, 0};
  EXPECT_THAT(Validate(dense), IsOk());
  EXPECT_EQ(dense.region_bytes(), 0);
  EXPECT_EQ(dense.padding_bytes(), 0);
}

// ---- padding ---------------------------------------------------------------

TEST(ExpertShape, PaddingIsTheLeastThatDivides) {
  for (const ExpertShape& shape : Shapes()) {
    const int n = shape.num_ranks, u = shape.unit_rows;
    EXPECT_GE(shape.padded_experts(), shape.num_experts);
    EXPECT_LT(shape.padded_experts() - shape.num_experts, n);
    EXPECT_EQ(shape.rows_per_block() % u, 0);
    EXPECT_GE(shape.padded_rows(), shape.intermediate_rows);
    EXPECT_LT(shape.padded_rows() - shape.intermediate_rows, n * u);
  }
}

TEST(ExpertShape, TellsThePriceOfPadding) {
  // 12 experts of 80 rows over 8 ranks: 16 of 128, 3 slots, 4 bytes a row.
  const ExpertShape shape{8, 2, 12, 80, 16, 4};
  EXPECT_EQ(shape.padded_experts(), 16);
  EXPECT_EQ(shape.padded_rows(), 128);
  EXPECT_EQ(shape.padding_bytes(), 3 * 3 * 4 * (16 * 128 - 12 * 80));
  EXPECT_EQ((ExpertShape{4, 2, 8, 64, 16, 4}.padding_bytes()), 0);
}

// ---- blocks ----------------------------------------------------------------

TEST(Blocks, EachLayoutGivesEachBlockOnePlace) {
  for (const int n : kSizes) {
    for (const Layout layout : LayoutsOf(n)) {
      std::vector<int> seen(n * n);
      for (Rank r = 0; r < n; ++r) {
        for (int q = 0; q < n; ++q) {
          const Block block = BlockAt(layout, n, r, q);
          ASSERT_TRUE(block.owner >= 0 && block.owner < n);
          ASSERT_TRUE(block.slice >= 0 && block.slice < n);
          EXPECT_EQ(HolderOf(layout, n, block), r);
          EXPECT_EQ(IndexOf(layout, n, block), q);
          ++seen[block.owner * n + block.slice];
        }
      }
      EXPECT_EQ(seen, std::vector<int>(n * n, 1));
    }
  }
}

TEST(Blocks, EpHoldsARowOfTheMatrixAndTpAColumn) {
  for (const int n : kSizes) {
    for (Rank r = 0; r < n; ++r) {
      for (int q = 0; q < n; ++q) {
        EXPECT_EQ(BlockAt(ExpertParallel(), n, r, q), (Block{r, q}));
        EXPECT_EQ(BlockAt(TensorParallel(n), n, r, q), (Block{q, r}));
      }
    }
  }
}

// Every row of every expert, padding too, is in just one rank's view, where the
// block that has it lies.
TEST(SlotView, CoversExpertsAndRowsOnceAndAgreesWithTheBlocks) {
  for (const ExpertShape& shape : Shapes()) {
    const int n = shape.num_ranks;
    for (const Layout layout : LayoutsOf(n)) {
      std::vector<int> seen(shape.padded_experts() * n);
      for (Rank r = 0; r < n; ++r) {
        const SlotView view = ViewOf(shape, layout, r);
        ASSERT_EQ(view.first_row % shape.rows_per_block(), 0);
        const int first_slice = view.first_row / shape.rows_per_block();
        for (int e = 0; e < view.num_experts; ++e) {
          for (int p = 0; p < view.num_pieces; ++p) {
            const int expert = view.first_expert + e;
            const Block block{expert / shape.experts_per_block(),
                              first_slice + p};
            ASSERT_EQ(HolderOf(layout, n, block), r);
            const int64_t at =
                PieceOffset(shape, layout, e) + p * shape.block_bytes();
            EXPECT_EQ(at / shape.block_bytes(), IndexOf(layout, n, block));
            EXPECT_EQ(at % shape.block_bytes(),
                      expert % shape.experts_per_block() * shape.piece_bytes());
            ++seen[expert * n + block.slice];
          }
          const RankRange ranks =
              RanksOfExpert(shape, layout, view.first_expert + e);
          EXPECT_TRUE(ranks.first <= r && r < ranks.end);
          EXPECT_EQ(ranks.end - ranks.first, layout.tp_size);
        }
      }
      EXPECT_EQ(seen, std::vector<int>(shape.padded_experts() * n, 1));
    }
  }
}

// ---- segments --------------------------------------------------------------

TEST(PlanSlot, BetweenEpAndTpIsOneContiguousCopyAPeer) {
  const ExpertShape shape{3, 2, 6, 48, 16, 4};
  const int64_t b = shape.block_bytes();
  EXPECT_THAT(PlanSlot(shape, ExpertParallel(), TensorParallel(3), 1),
              ElementsAre(CopySegment{0, b, 0, b}, CopySegment{1, b, b, b},
                          CopySegment{2, b, 2 * b, b}));
  EXPECT_THAT(PlanSlot(shape, TensorParallel(3), ExpertParallel(), 1),
              ElementsAre(CopySegment{0, b, 0, b}, CopySegment{1, b, b, b},
                          CopySegment{2, b, 2 * b, b}));
}

TEST(PlanSlot, CoversTheDestinationOnceInOrder) {
  ForEachPair([](const ExpertShape& shape, Layout from, Layout to) {
    for (Rank r = 0; r < shape.num_ranks; ++r) {
      int64_t at = 0;
      CopySegment last{-1, 0, 0, 0};
      for (const CopySegment& s : PlanSlot(shape, from, to, r)) {
        ASSERT_EQ(s.dst_offset, at);
        ASSERT_GT(s.size_bytes, 0);
        ASSERT_TRUE(s.src_rank >= 0 && s.src_rank < shape.num_ranks);
        ASSERT_GE(s.src_offset, 0);
        ASSERT_LE(s.src_offset + s.size_bytes, shape.slot_bytes());
        // Nothing is left to merge.
        ASSERT_FALSE(last.src_rank == s.src_rank &&
                     last.src_offset + last.size_bytes == s.src_offset);
        at += s.size_bytes;
        last = s;
      }
      ASSERT_EQ(at, shape.slot_bytes());
    }
  });
}

// What lies where is told by the definition of the layouts, not by the plan.
TEST(PlanSlot, PutsEveryBlockWhereTheLayoutHasIt) {
  ForEachPair([](const ExpertShape& shape, Layout from, Layout to) {
    const int n = shape.num_ranks;
    const int64_t bytes = shape.block_bytes();
    for (Rank r = 0; r < n; ++r) {
      std::vector<Block> slot(n, Block{-1, -1});
      for (const CopySegment& s : PlanSlot(shape, from, to, r)) {
        ASSERT_EQ(s.size_bytes % bytes, 0);
        for (int64_t done = 0; done < s.size_bytes; done += bytes) {
          slot[(s.dst_offset + done) / bytes] =
              BlockAt(from, n, s.src_rank,
                      static_cast<int>((s.src_offset + done) / bytes));
        }
      }
      for (int q = 0; q < n; ++q) {
        ASSERT_EQ(slot[q], BlockAt(to, n, r, q));
      }
    }
  });
}

TEST(PlanSlot, TakesFromAPeerOnlyWhatChangesItsRank) {
  ForEachPair([](const ExpertShape& shape, Layout from, Layout to) {
    const int n = shape.num_ranks;
    int moved = 0, changed = 0;
    for (Rank r = 0; r < n; ++r) {
      for (const CopySegment& s : PlanSlot(shape, from, to, r)) {
        if (s.src_rank != r) {
          moved += static_cast<int>(s.size_bytes / shape.block_bytes());
        }
      }
    }
    for (int o = 0; o < n; ++o) {
      for (int s = 0; s < n; ++s) {
        changed += HolderOf(from, n, {o, s}) != HolderOf(to, n, {o, s});
      }
    }
    ASSERT_EQ(moved, changed);
  });
}

}  // namespace
}  // namespace moebius
