#include "coordinator/api/write_interval.h"

#include "gtest/gtest.h"

namespace moebius {
namespace {

using std::chrono::microseconds;
using std::chrono::milliseconds;

TEST(WriteInterval, GrowsWithTheCostOfWriting) {
  EXPECT_EQ(WriteInterval(milliseconds(2), microseconds(12)), milliseconds(2));
  EXPECT_EQ(WriteInterval(milliseconds(2), microseconds(200)), milliseconds(5));
}

TEST(WriteInterval, HasBounds) {
  EXPECT_EQ(WriteInterval(milliseconds(2), milliseconds(0)), milliseconds(2));
  EXPECT_EQ(WriteInterval(milliseconds(2), milliseconds(9)), milliseconds(8));
  EXPECT_EQ(WriteInterval(milliseconds(20), milliseconds(9)), milliseconds(20));
}

TEST(WriteInterval, OfZeroStaysZero) {
  EXPECT_EQ(WriteInterval(milliseconds(0), milliseconds(9)), milliseconds(0));
}

}  // namespace
}  // namespace moebius
