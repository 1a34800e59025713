#include "common/base/core_binding.h"

#include <atomic>
#include <thread>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace moebius {
namespace {

using testing::ElementsAre;

cpu_set_t Cpus(const std::vector<int>& cpus) {
  cpu_set_t set;
  CPU_ZERO(&set);
  for (const int cpu : cpus) CPU_SET(cpu, &set);
  return set;
}

std::vector<int> Numbers(const cpu_set_t& set) {
  std::vector<int> numbers;
  for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
    if (CPU_ISSET(cpu, &set)) numbers.push_back(cpu);
  }
  return numbers;
}

std::vector<int> AllowedHere() {
  cpu_set_t set;
  EXPECT_EQ(pthread_getaffinity_np(pthread_self(), sizeof(set), &set), 0);
  return Numbers(set);
}

TEST(CoreShare, SharesAreDisjointAndCoverWhatIsAllowed) {
  const std::vector<int> all = {0, 1, 5, 64, 100, 511, 1023};
  for (int num_shares = 1; num_shares <= 7; ++num_shares) {
    std::vector<int> together;
    for (int share = 0; share < num_shares; ++share) {
      const auto cpus = CoreShare(Cpus(all), share, num_shares);
      ASSERT_TRUE(cpus.has_value());
      const std::vector<int> numbers = Numbers(*cpus);
      EXPECT_GE(numbers.size(), all.size() / num_shares);
      EXPECT_LE(numbers.size(), (all.size() + num_shares - 1) / num_shares);
      together.insert(together.end(), numbers.begin(), numbers.end());
    }
    EXPECT_EQ(together, all);
  }
  EXPECT_THAT(Numbers(*CoreShare(Cpus(all), 1, 3)), ElementsAre(5, 64));
}

TEST(CoreShare, MoreSharesThanCpusIsNone) {
  EXPECT_FALSE(CoreShare(Cpus({3, 4}), 0, 3).has_value());
  EXPECT_FALSE(CoreShare(Cpus({}), 0, 1).has_value());
}

TEST(CoreBinding, ThreadsHaveTheirShareUntilItEnds) {
  const std::vector<int> allowed = AllowedHere();
  ASSERT_FALSE(allowed.empty());
  const int num_shares = static_cast<int>(allowed.size());
  std::atomic<bool> end = false;
  std::thread other([&] {
    while (!end) std::this_thread::yield();
  });
  const auto allowed_other = [&] {
    cpu_set_t set;
    EXPECT_EQ(pthread_getaffinity_np(other.native_handle(), sizeof(set), &set),
              0);
    return Numbers(set);
  };
  {
    const CoreBinding binding({pthread_self()}, num_shares - 1, num_shares);
    EXPECT_THAT(AllowedHere(), ElementsAre(allowed.back()));
    EXPECT_EQ(sched_getcpu(), allowed.back());
    EXPECT_EQ(allowed_other(), allowed);
  }
  EXPECT_EQ(AllowedHere(), allowed);
  if (num_shares >= 2) {
    const CoreBinding binding({pthread_self(), other.native_handle()}, 0, 2);
    EXPECT_EQ(AllowedHere(), Numbers(*CoreShare(Cpus(allowed), 0, 2)));
    EXPECT_EQ(allowed_other(), Numbers(*CoreShare(Cpus(allowed), 1, 2)));
  }
  EXPECT_EQ(AllowedHere(), allowed);
  EXPECT_EQ(allowed_other(), allowed);
  end = true;
  other.join();
}

TEST(CoreBinding, TooFewCpusLeaveThreadsAsTheyAre) {
  const std::vector<int> allowed = AllowedHere();
  const int num_shares = static_cast<int>(allowed.size()) + 1;
  const CoreBinding binding({pthread_self()}, 0, num_shares);
  EXPECT_EQ(AllowedHere(), allowed);
}

}  // namespace
}  // namespace moebius
