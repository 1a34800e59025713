// Sizes of passes that come again.
#include "worker/model/pass_buckets.h"

#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace moebius {
namespace {

using testing::ElementsAre;
using testing::IsEmpty;

constexpr Layout kEp = ExpertParallel();
constexpr Layout kTp = TensorParallel(4);

StepLayout Steady(Layout attention) {
  return {attention, ExpertsState::At(attention, Side::kHigh)};
}

int Padded(Layout attention, std::vector<int> rows, PadLimits limits) {
  return PaddedRows({Steady(attention), 4, rows, rows}, limits);
}

TEST(PassBuckets, RowsGoUpToTheNextSize) {
  struct Case {
    int rows, padded;
  };
  for (const Case& c : {Case{1, 1},
                        {2, 2},
                        {3, 4},
                        {5, 8},
                        {9, 16},
                        {16, 16},
                        {17, 24},
                        {25, 32},
                        {33, 48},
                        {49, 64},
                        {65, 96},
                        {97, 128},
                        {129, 192},
                        {193, 256},
                        {257, 384},
                        {500, 512}}) {
    EXPECT_EQ(Padded(kTp, {c.rows}, {1024, 1024}), c.padded) << c.rows;
  }
}

TEST(PassBuckets, TheLargestRankSaysForAll) {
  EXPECT_EQ(Padded(kEp, {0, 3, 1, 0}, {512, 512}), 4);
  EXPECT_EQ(Padded(kEp, {0, 0, 0, 17}, {512, 512}), 24);
}

TEST(PassBuckets, NoRankPadsBeyondALimit) {
  // 4 ranks of 25 rows are as many as the step may have.
  EXPECT_EQ(Padded(kEp, {20, 1, 1, 1}, {103, 512}), 24);
  EXPECT_EQ(Padded(kEp, {25, 1, 1, 1}, {103, 512}), 25);
  EXPECT_EQ(Padded(kEp, {26, 1, 1, 1}, {103, 512}), 0);
  // Two groups of 51.
  EXPECT_EQ(Padded(Layout{2}, {20, 1}, {103, 512}), 24);
  EXPECT_EQ(Padded(Layout{2}, {50, 1}, {103, 512}), 51);
  EXPECT_EQ(Padded(Layout{2}, {52, 1}, {103, 512}), 0);
  EXPECT_EQ(Padded(kTp, {26}, {103, 512}), 32);
  EXPECT_EQ(Padded(kTp, {100}, {103, 512}), 103);
  EXPECT_EQ(Padded(kTp, {100}, {512, 50}), 0);
}

TEST(PassBuckets, APassWithoutRowsStaysAsItIs) {
  EXPECT_EQ(Padded(kEp, {0, 0, 0, 0}, {512, 512}), 0);
  EXPECT_EQ(Padded(kTp, {0}, {512, 512}), 0);
  EXPECT_EQ(Padded(kEp, {}, {512, 512}), 0);
  EXPECT_EQ(Padded(kEp, {1, 1, 1, 1}, {3, 512}), 0);
}

TEST(PassBuckets, APassThatDoesNotWantAllLogitsStaysAsItIs) {
  const std::vector<int> rows = {1, 16, 0, 1}, wanted = {1, 1, 0, 1};
  EXPECT_EQ(PaddedRows({Steady(kEp), 4, rows, wanted}, {512, 512}), 0);
}

TEST(PassBuckets, APassInTheMidstOfASwitchStaysAsItIs) {
  const std::vector<int> rows = {1, 1, 1, 1};
  StepLayout layout = Steady(kEp);
  layout.experts = layout.experts.Towards(kTp);
  EXPECT_EQ(PaddedRows({layout, 4, rows, rows}, {512, 512}), 0);
  layout.experts = layout.experts.Finished();
  EXPECT_EQ(PaddedRows({layout, 4, rows, rows}, {512, 512}), 1);
}

TEST(PassBuckets, AllSizesAreThoseThatPassesArePaddedTo) {
  EXPECT_THAT(RowBuckets(kTp, 4, {103, 512}),
              ElementsAre(1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 103));
  EXPECT_THAT(RowBuckets(kEp, 4, {103, 512}),
              ElementsAre(1, 2, 4, 8, 16, 24, 25));
  EXPECT_THAT(RowBuckets(kEp, 4, {64, 512}), ElementsAre(1, 2, 4, 8, 16));
  EXPECT_THAT(RowBuckets(kEp, 4, {3, 512}), IsEmpty());
  for (const Layout attention : {kEp, kTp}) {
    std::vector<int> seen;
    for (int rows = 1; rows <= 103; ++rows) {
      const int padded = Padded(attention, {rows}, {103, 512});
      if (padded == 0) break;
      EXPECT_GE(padded, rows);
      if (seen.empty() || seen.back() != padded) seen.push_back(padded);
    }
    EXPECT_EQ(seen, RowBuckets(attention, 4, {103, 512}));
  }
}

TEST(PassBuckets, PositionsGoUpToPowersOfFour) {
  EXPECT_EQ(PositionBucket(0, 40960, 40960), 1024);
  EXPECT_EQ(PositionBucket(1024, 40960, 40960), 1024);
  EXPECT_EQ(PositionBucket(1025, 40960, 40960), 4096);
  EXPECT_EQ(PositionBucket(16385, 40960, 40960), 40960);
  EXPECT_EQ(PositionBucket(40960, 40960, 40960), 40960);
  EXPECT_EQ(PositionBucket(3, 200, 200), 200);
  EXPECT_EQ(PositionBucket(2000000000, 2147483647, 2147483647), 2147483647);
  EXPECT_THAT(PositionBuckets(40960, 40960),
              ElementsAre(1024, 4096, 16384, 40960));
  EXPECT_THAT(PositionBuckets(4096, 4096), ElementsAre(1024, 4096));
  EXPECT_THAT(PositionBuckets(200, 200), ElementsAre(200));
  // Those of 4,096 positions or more are launched alike.
  EXPECT_THAT(PositionBuckets(40960, 4097), ElementsAre(1024, 4096, 40960));
  EXPECT_THAT(PositionBuckets(40960, 4096), ElementsAre(1024, 40960));
  EXPECT_THAT(PositionBuckets(40960, 1), ElementsAre(40960));
  EXPECT_EQ(PositionBucket(3, 40960, 1), 40960);
  EXPECT_EQ(PositionBucket(1025, 40960, 4097), 4096);
  EXPECT_EQ(PositionBucket(4097, 40960, 4097), 40960);
}

TEST(PassBuckets, AKeyNamesLayoutsAndSide) {
  const StepLayout low = {kEp, ExpertsState::At(kTp, Side::kLow)};
  const StepLayout high = {kEp, ExpertsState::At(kTp, Side::kHigh)};
  EXPECT_EQ(KeyOf(low, 8, 1024), KeyOf(low, 8, 1024));
  EXPECT_NE(KeyOf(low, 8, 1024), KeyOf(high, 8, 1024));
  EXPECT_NE(KeyOf(low, 8, 1024), KeyOf(low, 16, 1024));
  EXPECT_NE(KeyOf(low, 8, 1024), KeyOf(low, 8, 4096));
  EXPECT_NE(KeyOf(low, 8, 1024), KeyOf(Steady(kEp), 8, 1024));
  EXPECT_NE(KeyOf(Steady(kTp), 8, 1024), KeyOf(Steady(kEp), 8, 1024));
}

}  // namespace
}  // namespace moebius
