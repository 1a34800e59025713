#include "worker/memory/region.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>

#include <algorithm>
#include <cerrno>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/status_matchers.h"
#include "tests/unit/worker/memory/processes.h"

namespace moebius {
namespace {

using testing::HasSubstr;
using Access = Region::Access;

std::unique_ptr<Region> NewRegion(int64_t size_bytes,
                                  const RegionOptions& options = {}) {
  auto region = CreateMemfdRegion("test", size_bytes, options);
  EXPECT_THAT(region, IsOk());
  return *std::move(region);
}

std::unique_ptr<Region> PeerOf(const Region& region) {
  auto fd = ReopenReadOnly(region.descriptor());
  EXPECT_THAT(fd, IsOk());
  auto peer = AdoptMemfdRegion(*std::move(fd), region.size_bytes(),
                               Access::kReadOnly, {});
  EXPECT_THAT(peer, IsOk());
  return *std::move(peer);
}

TEST(Region, ImpossibleSizesAreRefused) {
  for (int64_t size : {int64_t{-1}, int64_t{1} << 62, INT64_MAX}) {
    EXPECT_THAT(CreateMemfdRegion("test", size, {}),
                StatusIs(absl::StatusCode::kInvalidArgument))
        << size;
  }
}

TEST(Region, NoAddressesLeftIsResourceExhausted) {
  Child child([] {
    const rlimit limit{rlim_t{1} << 20, rlim_t{1} << 20};
    ::setrlimit(RLIMIT_AS, &limit);
    const auto region = CreateMemfdRegion("test", 1 << 30, {});
    return absl::IsResourceExhausted(region.status()) ? 0 : 1;
  });
  EXPECT_EQ(child.Join(), 0);
}

TEST(Region, NoDescriptorsLeftIsResourceExhausted) {
  Child child([] {
    const rlimit limit{3, 3};
    ::setrlimit(RLIMIT_NOFILE, &limit);
    const auto region = CreateMemfdRegion("test", 1, {});
    return absl::IsResourceExhausted(region.status()) ? 0 : 1;
  });
  EXPECT_EQ(child.Join(), 0);
}

TEST(Region, AdoptionOfAnotherSizeIsRefused) {
  const auto region = NewRegion(3 * kRegionAlignment);
  for (int64_t size : {int64_t{0}, 2 * kRegionAlignment,
                       3 * kRegionAlignment + 1, int64_t{1} << 40}) {
    auto fd = Duplicate(region->descriptor());
    ASSERT_THAT(fd, IsOk());
    EXPECT_THAT(
        AdoptMemfdRegion(*std::move(fd), size, Access::kReadWrite, {}),
        StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("bytes")))
        << size;
  }
}

TEST(Region, OnlySealedMemoryIsAdopted) {
  UniqueFd unsealed(::memfd_create("test", MFD_CLOEXEC | MFD_ALLOW_SEALING));
  ASSERT_EQ(::ftruncate(unsealed.get(), kRegionAlignment), 0);
  EXPECT_THAT(AdoptMemfdRegion(std::move(unsealed), kRegionAlignment,
                               Access::kReadWrite, {}),
              StatusIs(absl::StatusCode::kInvalidArgument));
  UniqueFd device(::open("/dev/zero", O_RDWR | O_CLOEXEC));
  EXPECT_THAT(AdoptMemfdRegion(std::move(device), kRegionAlignment,
                               Access::kReadWrite, {}),
              StatusIs(absl::StatusCode::kInvalidArgument));
  EXPECT_FALSE(
      AdoptMemfdRegion(UniqueFd(), kRegionAlignment, Access::kReadWrite, {})
          .ok());
}

TEST(Region, SizeCannotBeChangedByAnybody) {
  const auto region = NewRegion(1);
  EXPECT_EQ(::ftruncate(region->descriptor(), 0), -1);
  EXPECT_EQ(errno, EPERM);
  EXPECT_EQ(::ftruncate(region->descriptor(), 2 * kRegionAlignment), -1);
  EXPECT_EQ(errno, EPERM);
}

TEST(Region, IsZeroedAlignedAndOfWholeUnits) {
  for (int64_t size :
       {int64_t{0}, int64_t{1}, kRegionAlignment, kRegionAlignment + 1}) {
    for (bool prefault : {false, true}) {
      const auto region = NewRegion(size, {.prefault = prefault});
      EXPECT_EQ(reinterpret_cast<uintptr_t>(region->base()) % kRegionAlignment,
                0u);
      EXPECT_EQ(region->size_bytes(), RoundUpToRegion(size));
      EXPECT_GE(region->size_bytes(), size);
      EXPECT_TRUE(std::all_of(region->base(),
                              region->base() + region->size_bytes(),
                              [](std::byte b) { return b == std::byte{0}; }));
    }
  }
}

TEST(Region, PrefaultAllocatesEveryPage) {
  const auto region = NewRegion(4 * kRegionAlignment, {.prefault = true});
  struct stat info {};
  ASSERT_EQ(::fstat(region->descriptor(), &info), 0);
  EXPECT_EQ(info.st_blocks * 512, 4 * kRegionAlignment);
}

TEST(Region, NumaNodeHasNoEffectOnOneNode) {
  // On a machine of several, node 0 exists as well.
  const auto region = NewRegion(1, {.prefault = true, .numa_node = 0});
  EXPECT_EQ(region->size_bytes(), kRegionAlignment);
}

TEST(Region, PeerSeesWhatTheOwnerWrites) {
  const auto region = NewRegion(1);
  const auto peer = PeerOf(*region);
  region->mutable_base()[12345] = std::byte{42};
  EXPECT_EQ(peer->base()[12345], std::byte{42});
  EXPECT_NE(peer->base(), region->base());
}

TEST(Region, PeerCannotMakeItsMappingWritable) {
  const auto region = NewRegion(1);
  const auto peer = PeerOf(*region);
  EXPECT_EQ(peer->mutable_base(), nullptr);
  EXPECT_EQ(::mprotect(const_cast<std::byte*>(peer->base()), 4096,
                       PROT_READ | PROT_WRITE),
            -1);
  EXPECT_EQ(errno, EACCES);
  EXPECT_EQ(::mmap(nullptr, 4096, PROT_READ | PROT_WRITE, MAP_SHARED,
                   peer->descriptor(), 0),
            MAP_FAILED);
  EXPECT_EQ(errno, EACCES);
  EXPECT_EQ(::pwrite(peer->descriptor(), "x", 1, 0), -1);
  EXPECT_EQ(errno, EBADF);
}

TEST(Region, WriteThroughAPeersMappingEndsTheWriterAlone) {
  const auto region = NewRegion(1);
  const auto peer = PeerOf(*region);
  region->mutable_base()[0] = std::byte{7};
  Child child([&] {
    ::signal(SIGSEGV, SIG_DFL);  // not the sanitizer's
    *const_cast<volatile std::byte*>(peer->base()) = std::byte{1};
    return 0;
  });
  EXPECT_EQ(child.Join(), -SIGSEGV);
  EXPECT_EQ(region->base()[0], std::byte{7});
}

TEST(Region, BytesOutliveTheRegionWhileADescriptorIsHeld) {
  auto region = NewRegion(1);
  region->mutable_base()[99] = std::byte{5};
  auto fd = Duplicate(region->descriptor());
  ASSERT_THAT(fd, IsOk());
  region.reset();
  const auto adopted =
      AdoptMemfdRegion(*std::move(fd), 1, Access::kReadWrite, {});
  ASSERT_THAT(adopted, IsOk());
  EXPECT_EQ((*adopted)->base()[99], std::byte{5});
  (*adopted)->mutable_base()[99] = std::byte{6};
}

TEST(Region, LeavesNoDescriptorAndNoMapping) {
  const int descriptors = CountDescriptors();
  const std::byte* where = nullptr;
  {
    const auto region = NewRegion(1);
    const auto peer = PeerOf(*region);
    where = region->base();
  }
  EXPECT_EQ(CountDescriptors(), descriptors);
  EXPECT_EQ(::msync(const_cast<std::byte*>(where), 4096, MS_ASYNC), -1);
  EXPECT_EQ(errno, ENOMEM);
}

}  // namespace
}  // namespace moebius
