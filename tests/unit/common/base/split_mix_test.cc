#include "common/base/split_mix.h"

#include "gtest/gtest.h"

namespace moebius {
namespace {

TEST(SplitMix, DrawsWhatTheReferenceImplementationDraws) {
  EXPECT_EQ(SplitMixAt(1234567, 0), 6457827717110365317u);
  EXPECT_EQ(SplitMixAt(1234567, 1), 3203168211198807973u);
  EXPECT_EQ(SplitMixAt(1234567, 2), 9817491932198370423u);
  EXPECT_EQ(SplitMixAt(1234567, 3), 4593380528125082431u);
}

TEST(SplitMix, TheUnitIntervalHasNoUpperEnd) {
  EXPECT_EQ(UnitInterval(0), 0.0);
  EXPECT_EQ(UnitInterval(uint64_t{1} << 63), 0.5);
  EXPECT_LT(UnitInterval(~uint64_t{0}), 1.0);
}

}  // namespace
}  // namespace moebius
