#include "common/base/histogram.h"

#include <array>

#include "gtest/gtest.h"

namespace moebius {
namespace {

constexpr std::array kBounds = {0.25, 0.5, 2.0};

TEST(Histogram, ABoundBelongsToItsOwnBucket) {
  Histogram histogram(kBounds);
  for (const double value : {0.0, 0.25, 0.26, 0.5, 2.0, 2.5, 100.0}) {
    histogram.Add(value);
  }
  EXPECT_EQ(histogram.AtMost(0.25), 2u);
  EXPECT_EQ(histogram.AtMost(0.5), 4u);
  EXPECT_EQ(histogram.AtMost(2.0), 5u);
  EXPECT_EQ(histogram.count(), 7u);
  EXPECT_EQ(histogram.sum(), 105.51);
}

TEST(Histogram, ASharedOneSaysTheSame) {
  SharedHistogram shared(kBounds);
  shared.Add(0.5);
  shared.Add(3);
  shared.Add(-1);  // a clock that went back is no time
  const Histogram histogram = shared.Get();
  EXPECT_EQ(histogram.AtMost(0.25), 1u);
  EXPECT_EQ(histogram.AtMost(2.0), 2u);
  EXPECT_EQ(histogram.count(), 3u);
  EXPECT_EQ(histogram.sum(), 3.5);
}

TEST(Histogram, WithoutBoundsItOnlyCounts) {
  Histogram histogram;
  histogram.Add(1);
  EXPECT_EQ(histogram.count(), 1u);
}

}  // namespace
}  // namespace moebius
