// Checksums of weights on a GPU against the processor's.
#include "worker/switch/gpu_weight_check.h"

#include <chrono>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/cuda/buffer.h"
#include "kernels/cuda/gpu.h"
#include "tests/gpu/device_bytes.h"
#include "tests/status_matchers.h"
#include "worker/switch/weight_checksum.h"

namespace moebius {
namespace {

constexpr ExpertShape kShape{2, 3, 8, 64, 16, 512};
constexpr ExpertsState kState = ExpertsState::At(ExpertParallel(), Side::kHigh);

// An experts region with something in it, on the host and on the GPU.
class Region {
 public:
  explicit Region(const ExpertShape& shape, int64_t seed = 1)
      : host_(shape.region_bytes()) {
    FillBytes(seed, host_.data(), shape.region_bytes());
    gpu_ = static_cast<std::byte*>(
        AllocateOnGpu("a test", shape.region_bytes(), &failure_));
    ToGpu(host_, gpu_);
    options_.shape = shape;
    options_.experts = gpu_;
    options_.failure = &failure_;
  }
  ~Region() {
    FreeOnGpu(gpu_);
    EXPECT_THAT(failure_.status(), IsOk());
  }
  Region(const Region&) = delete;
  Region& operator=(const Region&) = delete;

  const std::byte* host() const { return host_.data(); }
  std::byte* gpu() const { return gpu_; }
  GpuWeightCheckOptions For(Rank rank) const {
    GpuWeightCheckOptions options = options_;
    options.rank = rank;
    return options;
  }
  std::unique_ptr<WeightCheck> MakeCheck(Rank rank) const {
    auto check = MakeGpuWeightCheck(For(rank));
    EXPECT_THAT(check, IsOk());
    return *std::move(check);
  }

 private:
  std::vector<std::byte> host_;
  CudaFailure failure_;
  std::byte* gpu_ = nullptr;
  GpuWeightCheckOptions options_;
};

WeightCheck::Sum Await(WeightCheck& check) {
  for (;;) {
    if (const auto sum = check.Take()) return *sum;
    std::this_thread::yield();
  }
}

TEST(GpuWeightChecksum, IsTheProcessorsInEveryState) {
  struct Case {
    const char* what;
    ExpertShape shape;
  };
  const Case cases[] = {
      {"two ranks", kShape},
      {"four ranks", {4, 3, 16, 128, 16, 512}},
      {"experts and rows that are padded", {4, 2, 10, 48, 16, 256, 2}},
      {"units that end within a stripe", {2, 2, 4, 64, 16, 10}},
      {"units of several blocks", {2, 1, 2, 32, 16, 10000}},
      {"units of a block", {2, 2, 4, 64, 16, 4096}},
      {"one rank", {1, 2, 4, 64, 16, 512}},
      {"groups of two", {4, 2, 8, 64, 16, 512}},
  };
  for (const Case& one : cases) {
    const ExpertShape& shape = one.shape;
    ASSERT_THAT(Validate(shape), IsOk());
    const Region region(shape);
    const Layout ep = ExpertParallel();
    const Layout tp = TensorParallel(shape.num_ranks);
    std::vector<ExpertsState> states = {ExpertsState::At(ep, Side::kLow),
                                        ExpertsState::At(tp, Side::kHigh),
                                        {ep, tp, Side::kHigh, 1},
                                        {tp, ep, Side::kLow, 1}};
    if (const Layout half{2}; shape.num_ranks > 2) {
      states.push_back(ExpertsState::At(half, Side::kHigh));
      states.push_back({half, ep, Side::kHigh, 1});
      states.push_back({tp, half, Side::kLow, 1});
    }
    for (const ExpertsState& state : states) {
      for (Rank rank = 0; rank < shape.num_ranks; ++rank) {
        const auto sum = GpuWeightChecksum(region.For(rank), state);
        ASSERT_THAT(sum, IsOk());
        EXPECT_EQ(*sum,
                  WeightChecksum(shape, state, rank, region.host(), nullptr))
            << one.what << ", rank " << rank;
      }
    }
  }
}

TEST(GpuWeightChecksum, RowsThatMakeNoWordsAreRefused) {
  Region region({2, 1, 2, 4, 1, 12});
  const auto invalid = StatusIs(absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(GpuWeightChecksum(region.For(0), kState), invalid);
  EXPECT_THAT(MakeGpuWeightCheck(region.For(0)), invalid);
}

TEST(GpuWeightCheck, GivesTheChecksumOnceAndOfTheLastEpochAlone) {
  const Region region(kShape);
  const auto check = region.MakeCheck(1);
  EXPECT_FALSE(check->Take().has_value());
  for (uint64_t epoch = 1; epoch <= 3; ++epoch) {
    check->Begin(Epoch{epoch}, kState);
  }
  const WeightCheck::Sum sum = Await(*check);
  EXPECT_EQ(sum.epoch, Epoch{3});
  EXPECT_EQ(sum.checksum,
            WeightChecksum(kShape, kState, 1, region.host(), nullptr));
  EXPECT_FALSE(check->Take().has_value());
}

// 12 layers of 604 MB, as Qwen3-30B-A3B has 48 with two ranks.
TEST(GpuWeightCheck, IsGivenUpFarSoonerThanItEnds) {
  const ExpertShape shape{2, 12, 128, 768, 16, 4096};
  CudaFailure failure;
  const Buffer<std::byte, CudaExact> experts(CudaExact{nullptr, &failure, 0},
                                             "a test", shape.region_bytes());
  ASSERT_THAT(failure.status(), IsOk());
  GpuWeightCheckOptions options;
  options.shape = shape;
  options.experts = experts.data();
  options.failure = &failure;
  auto check = MakeGpuWeightCheck(options);
  ASSERT_THAT(check, IsOk());
  using Clock = std::chrono::steady_clock;
  const auto us_since = [](Clock::time_point begin) {
    return std::chrono::duration_cast<std::chrono::microseconds>(Clock::now() -
                                                                 begin)
        .count();
  };
  (*check)->Begin(Epoch{1}, kState);
  Await(**check);
  auto begin = Clock::now();
  (*check)->Begin(Epoch{2}, kState);
  const auto begun_us = us_since(begin);
  Await(**check);
  const auto whole_us = us_since(begin);
  int64_t longest_us = 0;
  for (int round = 0; round < 20; ++round) {
    (*check)->Begin(Epoch{3}, kState);
    begin = Clock::now();
    (*check)->GiveUp();
    longest_us = std::max<int64_t>(longest_us, us_since(begin));
    EXPECT_FALSE((*check)->Take().has_value());
  }
  EXPECT_LT(longest_us * 4, whole_us);
  begin = Clock::now();
  ASSERT_THAT(GpuWeightChecksum(options, kState), IsOk());
  std::printf(
      "check of %.1f GB beside steps: %lld us (%lld to begin), given "
      "up in at most %lld us; at once: %lld us\n",
      shape.num_moe_layers * shape.slot_bytes() * 1e-9,
      static_cast<long long>(whole_us), static_cast<long long>(begun_us),
      static_cast<long long>(longest_us),
      static_cast<long long>(us_since(begin)));
  EXPECT_THAT(failure.status(), IsOk());
}

TEST(GpuWeightCheck, EndsInTheMidstOfReading) {
  const Region region(kShape);
  for (int round = 0; round < 50; ++round) {
    const auto check = region.MakeCheck(0);
    check->Begin(Epoch{1}, kState);
  }
}

}  // namespace
}  // namespace moebius
