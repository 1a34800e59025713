#include "deploy/bench/crossover.h"

#include "gtest/gtest.h"

namespace moebius {
namespace {

TEST(Crossover, IsWhereEpBeginsToBeFasterForGood) {
  // At 2 by chance alone.
  const Crossover found = FindCrossover(
      {{1, 10, 20}, {2, 21, 20}, {4, 20, 40}, {16, 80, 40}, {64, 90, 50}});
  EXPECT_EQ(found.below, 4);
  EXPECT_EQ(found.from, 16);
  // Half as fast at 4, twice as fast at 16: equal in the middle, by logarithms.
  EXPECT_NEAR(found.estimate, 8, 1e-9);
  EXPECT_EQ(DescribeCrossover(found, "ep", "tp"),
            "EP is faster from 16 streams on, TP at 4; they would be equal at "
            "about 8.");
}

TEST(Crossover, MayBeOutsideOfWhatWasMeasured) {
  const Crossover always = FindCrossover({{8, 2, 1}, {16, 2, 1}});
  EXPECT_EQ(always.below, 0);
  EXPECT_EQ(always.from, 8);
  EXPECT_EQ(DescribeCrossover(always, "ep", "tp2"),
            "EP is faster than TP2 at every number of streams measured, from 8 "
            "on.");
  const Crossover never = FindCrossover({{8, 2, 1}, {16, 1, 1}});
  EXPECT_EQ(never.below, 16);
  EXPECT_EQ(never.from, 0);
  EXPECT_EQ(DescribeCrossover(never, "tp2", "tp"),
            "At the largest number of streams measured, 16, TP2 is not faster "
            "than TP yet.");
}

}  // namespace
}  // namespace moebius
