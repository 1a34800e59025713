// Regions in memory of a GPU, in one process.
#include <fcntl.h>
#include <sys/mman.h>

#include <memory>
#include <utility>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/cuda/gpu.h"
#include "tests/gpu/device_bytes.h"
#include "tests/status_matchers.h"
#include "tests/unit/worker/memory/processes.h"
#include "worker/memory/region_cuda.h"
#include "worker/memory/worker_memory.h"

namespace moebius {
namespace {

using testing::Each;
using testing::HasSubstr;

constexpr int64_t kSize = 3 * kRegionAlignment;

class GpuRegionTest : public testing::Test {
 protected:
  std::unique_ptr<Region> Create(int64_t size_bytes = kSize) {
    auto region = maker_->Create("test", size_bytes, {});
    EXPECT_THAT(region, IsOk());
    return *std::move(region);
  }
  absl::StatusOr<std::unique_ptr<Region>> Map(
      const Region& of, int64_t size_bytes = kSize,
      Region::Access access = Region::Access::kReadOnly) {
    auto fd = maker_->ForPeer(of);
    EXPECT_THAT(fd, IsOk());
    return maker_->Map(*std::move(fd), size_bytes, access, {});
  }
  static void Fill(std::byte* base, uint64_t seed) {
    std::vector<std::byte> bytes(kSize);
    FillBytes(seed, bytes.data(), kSize);
    ToGpu(bytes, base);
  }

  const std::unique_ptr<RegionMaker> maker_ = MakeGpuRegionMaker(0);
};

TEST_F(GpuRegionTest, TheProbeSaysWhetherThereAreAny) {
  EXPECT_THAT(CheckGpuRegions(0), IsOk());
  EXPECT_THAT(CheckGpuRegions(NumGpus()),
              StatusIs(absl::StatusCode::kNotFound));
}

TEST_F(GpuRegionTest, ANewRegionIsZeroRoundedUpAndAligned) {
  // What was there before is freed, and likely to be given again.
  Fill(Create()->mutable_base(), 1);
  const auto region = Create(kSize - 5);
  EXPECT_EQ(region->size_bytes(), kSize);
  EXPECT_EQ(reinterpret_cast<uintptr_t>(region->base()) % kRegionAlignment, 0);
  EXPECT_THAT(FromGpu(region->base(), kSize), Each(std::byte{0}));
  EXPECT_EQ(maker_->region_class(), RegionClass::kDevice);
}

TEST_F(GpuRegionTest, AnotherMappingShowsTheSameBytesAndKeepsThem) {
  auto region = Create();
  Fill(region->mutable_base(), 2);
  const auto bytes = FromGpu(region->base(), kSize);
  const auto peer = Map(*region);
  ASSERT_THAT(peer, IsOk());
  EXPECT_NE((*peer)->base(), region->base());
  EXPECT_EQ((*peer)->mutable_base(), nullptr);
  EXPECT_EQ(FromGpu((*peer)->base(), kSize), bytes);
  region.reset();
  EXPECT_EQ(FromGpu((*peer)->base(), kSize), bytes);
}

TEST_F(GpuRegionTest, ReplacePutsOtherMemoryAtTheSameAddress) {
  const auto first = Create(), second = Create();
  Fill(first->mutable_base(), 3);
  Fill(second->mutable_base(), 4);
  const auto peer = Map(*first);
  ASSERT_THAT(peer, IsOk());
  const std::byte* const base = (*peer)->base();
  ASSERT_THAT((*peer)->Replace(*maker_->ForPeer(*second)), IsOk());
  EXPECT_EQ((*peer)->base(), base);
  EXPECT_EQ(FromGpu(base, kSize), FromGpu(second->base(), kSize));
}

TEST_F(GpuRegionTest, WhatCannotReplaceLeavesTheOldMemory) {
  const auto region = Create(), larger = Create(2 * kSize);
  Fill(region->mutable_base(), 5);
  const auto peer = Map(*region);
  ASSERT_THAT(peer, IsOk());
  UniqueFd host(::memfd_create("test", MFD_CLOEXEC));
  EXPECT_THAT((*peer)->Replace(std::move(host)),
              StatusIs(absl::StatusCode::kInvalidArgument));
  EXPECT_THAT((*peer)->Replace(*maker_->ForPeer(*larger)),
              StatusIs(absl::StatusCode::kInvalidArgument));
  EXPECT_EQ(FromGpu((*peer)->base(), kSize), FromGpu(region->base(), kSize));
}

TEST_F(GpuRegionTest, WhatIsNoRegionOfThatSizeIsNotMapped) {
  const auto region = Create();
  const auto invalid = StatusIs(absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(Map(*region, 2 * kSize), invalid);
  EXPECT_THAT(Map(*region, kSize - kRegionAlignment), invalid);
  EXPECT_THAT(Map(*region, -1), invalid);
  EXPECT_THAT(maker_->Create("test", -1, {}), invalid);
  for (const char* path : {"/dev/null", "/proc/self/exe"}) {
    UniqueFd fd(::open(path, O_RDONLY | O_CLOEXEC));
    EXPECT_THAT(
        maker_->Map(std::move(fd), kSize, Region::Access::kReadOnly, {}),
        invalid)
        << path;
  }
}

TEST_F(GpuRegionTest, MoreThanThereIsIsRefusedAndNothingIsLeft) {
  Create();  // the driver's own memory and descriptors are there
  const int descriptors = CountDescriptors();
  const int64_t free_bytes = MemoryOfGpu()->free_bytes;
  EXPECT_THAT(maker_->Create("test", int64_t{1} << 44, {}),
              StatusIs(absl::StatusCode::kResourceExhausted,
                       HasSubstr("bytes of GPU 0")));
  {
    const auto region = Create(int64_t{1} << 30);
    const auto peer = Map(*region, int64_t{1} << 30);
    EXPECT_THAT(peer, IsOk());
    EXPECT_FALSE(Map(*region, kSize).ok());
    EXPECT_LE(MemoryOfGpu()->free_bytes, free_bytes - (int64_t{1} << 30));
    EXPECT_EQ(CountDescriptors(), descriptors + 2);
  }
  EXPECT_EQ(CountDescriptors(), descriptors);
  EXPECT_EQ(MemoryOfGpu()->free_bytes, free_bytes);
}

TEST_F(GpuRegionTest, RanksOfOneProcessSeeOneAnothersMemory) {
  MemoryGeometry geometry;
  geometry[RegionKind::kExperts] = kSize;
  geometry[RegionKind::kDense] = 100;
  geometry[RegionKind::kKv] = kSize;
  geometry[RegionKind::kExchange] = kSize;
  WorkerMemoryOptions options;
  options.maker = maker_.get();
  const auto memories = WorkerMemory::CreateInProcess(3, geometry, options);
  ASSERT_THAT(memories, IsOk());
  for (Rank rank = 0; rank < 3; ++rank) {
    const auto& memory = *(*memories)[rank];
    Fill(memory.mutable_base(RegionKind::kExperts), 10 + rank);
    Fill(memory.mutable_base(RegionKind::kKv), 20 + rank);
    // Each pushes into the exchange region of the next.
    Fill(memory.mutable_exchange((rank + 1) % 3), 30 + rank);
    EXPECT_EQ(memory.base(RegionKind::kDense, (rank + 1) % 3), nullptr);
  }
  for (Rank rank = 0; rank < 3; ++rank) {
    for (Rank peer = 0; peer < 3; ++peer) {
      for (RegionKind kind :
           {RegionKind::kExperts, RegionKind::kKv, RegionKind::kExchange}) {
        EXPECT_EQ(FromGpu((*memories)[rank]->base(kind, peer), kSize),
                  FromGpu((*memories)[peer]->base(kind, peer), kSize));
      }
    }
  }
  EXPECT_NE(FromGpu((*memories)[0]->base(RegionKind::kExchange, 0), kSize),
            FromGpu((*memories)[1]->base(RegionKind::kExchange, 1), kSize));
}

}  // namespace
}  // namespace moebius
