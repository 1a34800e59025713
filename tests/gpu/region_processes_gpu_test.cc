// Memory of a GPU between real processes.
#include <cstdio>
#include <memory>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/cuda/copies.h"
#include "tests/gpu/gpu_processes.h"
#include "worker/memory/region_ipc_cuda.h"
#include "worker/switch/gpu_mover_cuda.h"

namespace moebius {
namespace {

// How memory is shown to other processes.
struct Class {
  const char* name;
  MakeMaker make;
  int num_kept;   // regions that the vault keeps of a rank that was killed
  bool may_move;  // a successor's memory may not fit where the old one was
};

class EachClassTest : public RegionProcessesTest,
                      public testing::WithParamInterface<Class> {
 protected:
  MakeMaker make() const { return GetParam().make; }
};

TEST_P(EachClassTest, PeersReadWhatOwnersWriteAndPushWhereTheyMay) {
  std::vector<Child> children;
  for (Rank rank = 0; rank < 2; ++rank) {
    children.push_back(Fork(rank, [this, rank](VaultClient& client) {
      Worker worker(rank, make());
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

TEST_P(EachClassTest, APeersNewMemoryIsMappedWhereItsOldOneWas) {
  Event mapped, replaced;
  Child first = Fork(1, [&](VaultClient& client) {
    Worker worker(1, make());
    worker.Create(1, client);
    worker.Fill(RegionKind::kExperts, 12);
    for (;;) ::pause();
    return 0;
  });
  Child ours = Fork(0, [&](VaultClient& client) {
    Worker worker(0, make());
    worker.Create(0, client);
    worker.MapPeers(client);
    const std::byte* const base = worker.memory->base(RegionKind::kExperts, 1);
    mapped.Set();
    EXPECT_TRUE(replaced.Wait());
    const absl::Status anew = worker.memory->MapAnew(1, Incarnation{2}, client);
    if (GetParam().may_move && absl::IsFailedPrecondition(anew)) {
      std::printf("[   MOVED  ] %s\n", std::string(anew.message()).c_str());
      return 0;
    }
    EXPECT_THAT(anew, IsOk());
    EXPECT_EQ(worker.memory->base(RegionKind::kExperts, 1), base);
    EXPECT_TRUE(worker.Holds(RegionKind::kExperts, 1, 13));
    return 0;
  });
  ASSERT_TRUE(mapped.Wait());
  Kill(first);
  EXPECT_EQ(vault_->NumKept(1), GetParam().num_kept);
  vault_->Forget(1);
  Child second = Fork(1, [&](VaultClient& client) {
    Worker worker(1, make());
    worker.Create(1, client, /*incarnation=*/2);
    worker.Fill(RegionKind::kExperts, 13);
    replaced.Set();
    for (;;) ::pause();
    return 0;
  });
  EXPECT_EQ(ours.Join(), 0);
}

INSTANTIATE_TEST_SUITE_P(
    Classes, EachClassTest,
    testing::Values(Class{"Descriptors", &MakeGpuRegionMaker, kNumRegionKinds,
                          false},
                    Class{"Handles", &MakeIpcRegionMaker, 1, true}),
    [](const auto& info) { return std::string(info.param.name); });

TEST_F(RegionProcessesTest, ASuccessorFindsTheMemoryOfAKilledOwnerIntact) {
  Event filled, adopted;
  Child peer = Fork(1, [&](VaultClient& client) {
    Worker worker(1);
    worker.Create(1, client);
    worker.MapPeers(client);
    EXPECT_TRUE(adopted.Wait());
    // The mapping made in the owner's life goes on.
    EXPECT_TRUE(worker.Holds(RegionKind::kExperts, 0, 7));
    return 0;
  });
  Child owner = Fork(0, [&](VaultClient& client) {
    Worker worker(0);
    worker.Create(0, client);
    worker.MapPeers(client);
    worker.Fill(RegionKind::kExperts, 7);
    worker.Fill(RegionKind::kKv, 8);
    filled.Set();
    for (;;) ::pause();
    return 0;
  });
  ASSERT_TRUE(filled.Wait());
  Kill(owner);
  Child successor = Fork(0, [&](VaultClient& client) {
    Worker worker(0);
    worker.Adopt(0, 2, client);
    worker.MapPeers(client);
    EXPECT_TRUE(worker.Holds(RegionKind::kExperts, 0, 7));
    EXPECT_TRUE(worker.Holds(RegionKind::kKv, 0, 8));
    worker.Fill(RegionKind::kKv, 9);  // it may write as well
    EXPECT_TRUE(worker.Holds(RegionKind::kKv, 0, 9));
    return 0;
  });
  EXPECT_EQ(successor.Join(), 0);
  adopted.Set();
  EXPECT_EQ(peer.Join(), 0);
}

TEST_F(RegionProcessesTest, PullsFromAPeerThatIsKilledGoOn) {
  Event pulling, killed;
  Child victim = Fork(1, [&](VaultClient& client) {
    Worker worker(1);
    worker.Create(1, client);
    worker.Fill(RegionKind::kExperts, 14);
    worker.MapPeers(client);
    worker.Meet();
    for (;;) ::pause();
    return 0;
  });
  Child survivor = Fork(0, [&](VaultClient& client) {
    constexpr int64_t kSlotBytes = kSize / 2;
    Worker worker(0);
    worker.Create(0, client);
    worker.MapPeers(client);
    worker.Meet();
    GpuMoverOptions options;
    options.page_bytes = 8192;
    options.gpu = GpuOf(0);
    options.gpu_of_rank = {GpuOf(0), GpuOf(1)};
    const auto mover = MakeGpuMover(worker.memory.get(), options);
    EXPECT_THAT(mover, IsOk());
    const CopySegment whole{1, 0, 0, kSlotBytes};
    const auto pull = [&] {
      EXPECT_THAT((*mover)->BeginLayer({kSlotBytes, 0, 1}, {&whole, 1}),
                  IsOk());
      EXPECT_THAT((*mover)->Wait(), IsOk());
    };
    pull();
    pulling.Set();
    for (int round = 0; round < 2000; ++round) pull();
    EXPECT_TRUE(killed.Wait());
    ToGpu(std::vector<std::byte>(kSize),
          worker.memory->mutable_base(RegionKind::kExperts));
    pull();
    std::vector<std::byte> expected = BytesOf(14);
    expected.resize(kSlotBytes);
    EXPECT_TRUE(
        FromGpu(worker.memory->base(RegionKind::kExperts, 0) + kSlotBytes,
                kSlotBytes) == expected);
    return 0;
  });
  ASSERT_TRUE(pulling.Wait());
  Kill(victim);
  killed.Set();
  EXPECT_EQ(survivor.Join(), 0);
}

TEST_F(RegionProcessesTest, AWriteIntoAPeersExpertsFaultsInTheWriterAlone) {
  Event written;
  Child owner = Fork(0, [&](VaultClient& client) {
    Worker worker(0);
    worker.Create(0, client);
    worker.Fill(RegionKind::kExperts, 10);
    worker.MapPeers(client);
    EXPECT_TRUE(written.Wait());
    EXPECT_TRUE(worker.Holds(RegionKind::kExperts, 0, 10));
    worker.Fill(RegionKind::kExperts, 11);
    EXPECT_TRUE(worker.Holds(RegionKind::kExperts, 0, 11));
    return 0;
  });
  Child writer = Fork(1, [&](VaultClient& client) {
    Worker worker(1);
    worker.Create(1, client);
    worker.MapPeers(client);
    EXPECT_TRUE(worker.Holds(RegionKind::kExperts, 0, 10));
    auto* const peer =
        const_cast<std::byte*>(worker.memory->base(RegionKind::kExperts, 0));
    const GpuCopy copy{worker.memory->base(RegionKind::kExperts, 1), peer,
                       kSize};
    EXPECT_THAT(LaunchCopies({&copy, 1}, 4, nullptr), IsOk());
    EXPECT_EQ(cudaDeviceSynchronize(), cudaErrorIllegalAddress);
    return 0;
  });
  EXPECT_EQ(writer.Join(), 0);
  written.Set();
  EXPECT_EQ(owner.Join(), 0);
}

TEST_F(RegionProcessesTest, NothingStaysOpenOrAllocated) {
  const int before = CountDescriptors();
  std::vector<Child> children;
  for (Rank rank = 0; rank < 2; ++rank) {
    children.push_back(Fork(rank, [rank](VaultClient& client) {
      EXPECT_THAT(CheckGpuRegions(GpuOf(rank)),
                  IsOk());  // the driver's own are there
      const int descriptors = CountDescriptors();
      Worker worker(rank);
      worker.Create(rank, client);
      worker.MapPeers(client);
      worker.Meet();
      // Five regions of ours, four of the peer's.
      EXPECT_EQ(CountDescriptors(), descriptors + 9);
      worker.Meet();
      worker.memory.reset();
      EXPECT_EQ(CountDescriptors(), descriptors);
      return 0;
    }));
  }
  for (Child& child : children) EXPECT_EQ(child.Join(), 0);
  children.clear();
  EXPECT_EQ(vault_->NumKept(0), kNumRegionKinds);
  // The vault alone keeps the memory; it is free once the vault is gone.
  const auto free_bytes = [] {
    int pipe_ends[2];
    EXPECT_EQ(::pipe(pipe_ends), 0);
    Child child([&] {
      int64_t bytes = 0;  // of the GPUs of both
      for (int gpu = 0; gpu <= GpuOf(1); ++gpu) {
        EXPECT_THAT(UseGpu(gpu), IsOk());
        bytes += MemoryOfGpu()->free_bytes;
      }
      return ::write(pipe_ends[1], &bytes, sizeof(bytes)) == sizeof(bytes) ? 0
                                                                           : 1;
    });
    EXPECT_EQ(child.Join(), 0);
    int64_t bytes = 0;
    EXPECT_EQ(::read(pipe_ends[0], &bytes, sizeof(bytes)),
              static_cast<ssize_t>(sizeof(bytes)));
    ::close(pipe_ends[0]);
    ::close(pipe_ends[1]);
    return bytes;
  };
  const int64_t kept = free_bytes();
  vault_.reset();
  EXPECT_GE(free_bytes() - kept, 2 * 3 * kSize);
  EXPECT_LE(CountDescriptors(), before);
}

}  // namespace
}  // namespace moebius
