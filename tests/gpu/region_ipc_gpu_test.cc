// Memory of a GPU that is shown by handles, in one process.
#include <fcntl.h>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/cuda/gpu.h"
#include "tests/gpu/device_bytes.h"
#include "tests/status_matchers.h"
#include "worker/memory/region_ipc_cuda.h"

namespace moebius {
namespace {

using testing::Each;
using testing::HasSubstr;

constexpr auto kMake = &MakeIpcRegionMaker;

TEST(IpcRegionTest, ANewRegionIsZeroAndRoundedUpAndItsOwnMapping) {
  ASSERT_THAT(CheckIpcRegions(0), IsOk());
  EXPECT_THAT(CheckIpcRegions(NumGpus()),
              StatusIs(absl::StatusCode::kNotFound));
  const auto maker = kMake(0);
  const auto region = maker->Create("test", kRegionAlignment - 5, {});
  ASSERT_THAT(region, IsOk());
  EXPECT_EQ((*region)->size_bytes(), kRegionAlignment);
  EXPECT_THAT(FromGpu((*region)->base(), kRegionAlignment), Each(std::byte{0}));
  const auto mapped = maker->Map(*maker->ForPeer(**region), kRegionAlignment,
                                 Region::Access::kReadOnly, {});
  ASSERT_THAT(mapped, IsOk());
  EXPECT_EQ((*mapped)->base(), (*region)->base());
  EXPECT_EQ((*mapped)->mutable_base(), nullptr);
}

TEST(IpcRegionTest, WhatIsNoHandleOfThatSizeIsNotMapped) {
  const auto maker = kMake(0);
  const auto region = maker->Create("test", kRegionAlignment, {});
  ASSERT_THAT(region, IsOk());
  const auto invalid = StatusIs(absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(maker->Map(*maker->ForPeer(**region), 2 * kRegionAlignment,
                         Region::Access::kReadOnly, {}),
              invalid);
  EXPECT_THAT(maker->Map(UniqueFd(::open("/dev/zero", O_RDONLY | O_CLOEXEC)),
                         kRegionAlignment, Region::Access::kReadOnly, {}),
              invalid);
  EXPECT_THAT(maker->Create("test", -1, {}), invalid);
  EXPECT_THAT(maker->Create("test", int64_t{1} << 44, {}),
              StatusIs(absl::StatusCode::kResourceExhausted,
                       HasSubstr("bytes of GPU 0")));
}

}  // namespace
}  // namespace moebius
