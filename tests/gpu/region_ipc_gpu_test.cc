// Memory of a GPU that is shown by handles, where there are no descriptors.
#include <fcntl.h>

#include <memory>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/gpu/gpu_processes.h"
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

using IpcProcessesTest = RegionProcessesTest;

TEST_F(IpcProcessesTest, PeersReadWhatOwnersWriteAndPushWhereTheyMay) {
  std::vector<Child> children;
  for (Rank rank = 0; rank < 2; ++rank) {
    children.push_back(Fork(rank, [rank](VaultClient& client) {
      Worker worker(rank, kMake);
      worker.Create(rank, client);
      worker.Fill(RegionKind::kExperts, 1 + rank);
      worker.Fill(RegionKind::kKv, 3 + rank);
      worker.MapPeers(client);
      ToGpu(BytesOf(5 + rank), worker.memory->mutable_exchange(1 - rank));
      worker.Meet();
      EXPECT_TRUE(worker.Holds(RegionKind::kExperts, 1 - rank, 2 - rank));
      EXPECT_TRUE(worker.Holds(RegionKind::kKv, 1 - rank, 4 - rank));
      EXPECT_TRUE(worker.Holds(RegionKind::kExchange, rank, 6 - rank));
      worker.Meet();
      return 0;
    }));
  }
  for (Child& child : children) EXPECT_EQ(child.Join(), 0);
}

// A successor's memory is new, and its peer goes over to it.
TEST_F(IpcProcessesTest, AfterADeathTheMemoryIsNewAndPeersMapIt) {
  Event mapped, filled;
  Child peer = Fork(1, [&](VaultClient& client) {
    Worker worker(1, kMake);
    worker.Create(1, client);
    worker.MapPeers(client);
    const std::byte* const base = worker.memory->base(RegionKind::kExperts, 0);
    mapped.Set();
    EXPECT_TRUE(filled.Wait());
    EXPECT_THAT(worker.memory->MapAnew(0, Incarnation{2}, client), IsOk());
    EXPECT_EQ(worker.memory->base(RegionKind::kExperts, 0), base);
    EXPECT_TRUE(worker.Holds(RegionKind::kExperts, 0, 8));
    return 0;
  });
  Child owner = Fork(0, [&](VaultClient& client) {
    Worker worker(0, kMake);
    worker.Create(0, client);
    worker.Fill(RegionKind::kExperts, 7);
    for (;;) ::pause();
    return 0;
  });
  ASSERT_TRUE(mapped.Wait());
  Kill(owner);
  EXPECT_EQ(vault_->NumKept(0), 1);  // the signals
  vault_->Forget(0);
  Child successor = Fork(0, [&](VaultClient& client) {
    Worker worker(0, kMake);
    WorkerMemoryOptions options;
    options.maker = worker.maker.get();
    options.incarnation = Incarnation{2};
    auto made = WorkerMemory::Create(0, 2, Worker::Geometry(), client, options);
    EXPECT_THAT(made, IsOk());
    worker.memory = *std::move(made);
    worker.Fill(RegionKind::kExperts, 8);
    filled.Set();
    for (;;) ::pause();
    return 0;
  });
  EXPECT_EQ(peer.Join(), 0);
  Kill(successor);
}

}  // namespace
}  // namespace moebius
