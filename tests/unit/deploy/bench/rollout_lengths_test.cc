#include "deploy/bench/rollout_lengths.h"

#include <algorithm>

#include "gtest/gtest.h"

namespace moebius {
namespace {

TEST(RolloutLengths, HaveTheirMedianAndALongTail) {
  RolloutLengths how;
  how.median = 100;
  how.sigma = 1;
  how.least = 1;
  how.most = 1 << 20;
  std::vector<int> lengths = DrawLengths(how, 20000);
  std::sort(lengths.begin(), lengths.end());
  EXPECT_NEAR(lengths[10000], 100, 5);
  // Of a normal distribution 2.326 standard deviations: 100 * e^2.326.
  EXPECT_NEAR(lengths[19800], 1024, 120);
}

TEST(RolloutLengths, AreWithinTheirBoundsAndTheSameForASeed) {
  RolloutLengths how;
  how.least = 50;
  how.most = 200;
  const std::vector<int> lengths = DrawLengths(how, 1000);
  EXPECT_EQ(*std::min_element(lengths.begin(), lengths.end()), 50);
  EXPECT_EQ(*std::max_element(lengths.begin(), lengths.end()), 200);
  EXPECT_EQ(DrawLengths(how, 1000), lengths);
  how.seed = 2;
  EXPECT_NE(DrawLengths(how, 1000), lengths);
}

}  // namespace
}  // namespace moebius
