// When a refused client should come again, and the rate that it is taken from.
#include "coordinator/api/retry_after.h"

#include "coordinator/engine/recent_count.h"
#include "gtest/gtest.h"

namespace moebius {
namespace {

TEST(RetryAfter, IsWhenHalfOfTheQueueWillHaveGone) {
  const struct {
    uint64_t waiting, ended_recently;
    int seconds;
  } kCases[] = {
      {0, 0, 1},          // nothing waits
      {1024, 16'384, 1},  // 1024 a second
      {1024, 1024, 8},    // 64 a second
      {1024, 256, 32},    // 16 a second
      {100, 160, 5},      // 10 a second
      {101, 160, 6},      // rounded up
      {1024, 16, 60},     // 512 s, at most a minute
      {1, 0, 16},         // nothing ended for as long as we look back
      {1024, 0, 60},     {~uint64_t{0} / 64, 1, 60},
  };
  for (const auto& c : kCases) {
    EXPECT_EQ(RetryAfterSeconds(c.waiting, c.ended_recently), c.seconds)
        << c.waiting << " wait, " << c.ended_recently << " ended";
  }
}

TEST(RecentCount, ForgetsWhatIsLongerAgo) {
  const auto at = [](int ms) {
    return RecentCount::Time(std::chrono::hours(1000)) +
           std::chrono::milliseconds(ms);
  };
  RecentCount count;
  EXPECT_EQ(count.Count(at(0)), 0u);
  count.Add(at(500), 3);
  count.Add(at(900), 1);
  count.Add(at(5000), 10);
  EXPECT_EQ(count.Count(at(5000)), 14u);
  EXPECT_EQ(count.Count(at(kRecentSeconds * 1000 - 1)), 14u);
  EXPECT_EQ(count.Count(at(kRecentSeconds * 1000)), 10u);
  EXPECT_EQ(count.Count(at(kRecentSeconds * 1000 + 5000)), 0u);
  count.Add(at(100'000), 7);
  EXPECT_EQ(count.Count(at(100'000)), 7u);
  EXPECT_EQ(count.Count(at(1'000'000)), 0u);
}

}  // namespace
}  // namespace moebius
