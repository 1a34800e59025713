#include "deploy/bench/statistics.h"

#include "gtest/gtest.h"

namespace moebius {
namespace {

TEST(Statistics, PercentilesLieBetweenRanks) {
  EXPECT_EQ(Percentile({}, 50), 0.0);
  EXPECT_EQ(Percentile({7}, 99), 7.0);
  EXPECT_EQ(Percentile({1, 2}, 50), 1.5);
  EXPECT_EQ(Percentile({1, 2, 3, 4, 5}, 100), 5.0);
  const Summary summary = Summarize({3, 1, 2});
  EXPECT_EQ(summary.median, 2.0);
  EXPECT_EQ(summary.mean, 2.0);
  EXPECT_EQ(summary.max, 3.0);
  EXPECT_NEAR(summary.p99, 2.98, 1e-12);
  EXPECT_EQ(Summarize({}).count, 0u);
}

}  // namespace
}  // namespace moebius
