#include "worker/switch/thread_weight_check.h"

#include <cstddef>
#include <thread>
#include <vector>

#include "gtest/gtest.h"
#include "worker/switch/weight_checksum.h"

namespace moebius {
namespace {

constexpr ExpertShape kShape{2, 3, 8, 64, 16, 512};
constexpr ExpertsState kState = ExpertsState::At(ExpertParallel(), Side::kHigh);

std::vector<std::byte> Region() {
  std::vector<std::byte> region(kShape.region_bytes());
  for (size_t i = 0; i < region.size(); ++i) {
    region[i] = static_cast<std::byte>(i * 7 + i / 251);
  }
  return region;
}

WeightCheck::Sum Await(ThreadWeightCheck& check) {
  for (;;) {
    if (const auto sum = check.Take()) return *sum;
    std::this_thread::yield();
  }
}

TEST(ThreadWeightCheck, GivesTheChecksumOnceAndOfTheLastEpochAlone) {
  const std::vector<std::byte> region = Region();
  ThreadWeightCheck check(kShape, 1, region.data());
  EXPECT_FALSE(check.Take().has_value());
  for (uint64_t epoch = 1; epoch <= 3; ++epoch) {
    check.Begin(Epoch{epoch}, kState);
  }
  const WeightCheck::Sum sum = Await(check);
  EXPECT_EQ(sum.epoch, Epoch{3});
  EXPECT_EQ(sum.checksum,
            WeightChecksum(kShape, kState, 1, region.data(), nullptr));
  EXPECT_FALSE(check.Take().has_value());
}

// The thread sanitizer sees who still reads.
TEST(ThreadWeightCheck, ReadsNothingOnceGivenUp) {
  std::vector<std::byte> region = Region();
  ThreadWeightCheck check(kShape, 0, region.data());
  for (int round = 0; round < 200; ++round) {
    check.Begin(Epoch{1}, kState);
    if (round % 2 == 0) std::this_thread::yield();
    check.GiveUp();
    for (std::byte& byte : region) byte ^= std::byte{1};
    EXPECT_FALSE(check.Take().has_value());
  }
}

TEST(ThreadWeightCheck, EndsInTheMidstOfReading) {
  const std::vector<std::byte> region = Region();
  for (int round = 0; round < 50; ++round) {
    ThreadWeightCheck check(kShape, 0, region.data());
    check.Begin(Epoch{1}, kState);
  }
}

}  // namespace
}  // namespace moebius
