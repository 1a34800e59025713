// The copy that switches are measured against.
#include "deploy/bench/shared_copy.h"

#include "gtest/gtest.h"
#include "tests/status_matchers.h"

namespace moebius {
namespace {

TEST(SharedCopy, RateIsPlausibleForAnyNumberOfThreads) {
  for (int threads : {1, 2, 5}) {
    const absl::StatusOr<double> rate =
        SharedCopyBytesPerSecond(uint64_t{4} << 20, threads);
    ASSERT_THAT(rate, IsOk());
    EXPECT_GT(*rate, 1e6);
    EXPECT_LT(*rate, 1e13);
  }
}

TEST(SharedCopy, FewerBytesThanThreadsIsFine) {
  EXPECT_THAT(SharedCopyBytesPerSecond(1, 4), IsOk());
}

TEST(SharedCopy, SampleIsTheWholeUnlessThatIsFarMoreThanCachesHold) {
  EXPECT_EQ(SharedCopySample(0, 2), 1);
  EXPECT_EQ(SharedCopySample(12'600'000, 2), 12'600'000);
  EXPECT_EQ(SharedCopySample(uint64_t{256} << 20, 2), uint64_t{256} << 20);
  EXPECT_EQ(SharedCopySample((uint64_t{256} << 20) + 1, 2),
            uint64_t{256} << 20);
  EXPECT_EQ(SharedCopySample(uint64_t{100} << 30, 8), uint64_t{1} << 30);
}

}  // namespace
}  // namespace moebius
