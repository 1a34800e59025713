// Real processes that are workers with memory on a GPU. The vault is in the
// test's process; every worker is a forked child. Only children use the driver:
// once a process has, its forks cannot. So a program whose tests use a GPU
// themselves has no room for these.
#pragma once

#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <functional>
#include <memory>
#include <utility>
#include <vector>

#include "common/vault/vault_client.h"
#include "deploy/launcher/vault.h"
#include "gtest/gtest.h"
#include "kernels/cuda/gpu.h"
#include "tests/gpu/device_bytes.h"
#include "tests/status_matchers.h"
#include "tests/unit/worker/memory/processes.h"
#include "worker/memory/region_cuda.h"
#include "worker/memory/worker_memory.h"
#include "worker/peers/group_barrier.h"

namespace moebius {

inline constexpr absl::Duration kLong = absl::Seconds(30);
inline constexpr int64_t kSize = int64_t{64} << 20;

inline std::vector<std::byte> BytesOf(uint64_t seed) {
  std::vector<std::byte> bytes(kSize);
  FillBytes(seed, bytes.data(), kSize);
  return bytes;
}

inline int GpuOf(Rank rank) { return rank % std::max(1, NumGpus()); }

using MakeMaker = std::unique_ptr<RegionMaker> (*)(int gpu);

// A worker's memory on a GPU, one of its own if there are two. Lives in a
// child, which ends when it cannot have it.
struct Worker {
  explicit Worker(Rank rank, MakeMaker make = &MakeGpuRegionMaker)
      : maker(make(GpuOf(rank))) {}

  std::unique_ptr<RegionMaker> maker;
  std::unique_ptr<WorkerMemory> memory;
  std::unique_ptr<GroupBarrier> barrier;

  static MemoryGeometry Geometry() {
    MemoryGeometry geometry;
    geometry[RegionKind::kExperts] = kSize;
    geometry[RegionKind::kKv] = kSize;
    geometry[RegionKind::kExchange] = kSize;
    return geometry;
  }
  void Create(Rank rank, VaultClient& client, uint64_t incarnation = 1) {
    WorkerMemoryOptions options;
    options.maker = maker.get();
    options.incarnation = Incarnation{incarnation};
    Take(WorkerMemory::Create(rank, 2, Geometry(), client, options));
  }
  void Adopt(Rank rank, uint64_t incarnation, VaultClient& client) {
    WorkerMemoryOptions options;
    options.maker = maker.get();
    options.incarnation = Incarnation{incarnation};
    Take(WorkerMemory::Adopt(rank, 2, Geometry(), client, options));
  }
  void MapPeers(VaultClient& client) {
    EndUnless(memory->MapPeers(client, kLong));
    barrier = std::make_unique<GroupBarrier>(
        memory->rank(), memory->all_signals(), BarrierOptions{});
  }
  void Meet() {
    EXPECT_THAT(barrier->Wait(barrier->arrived() + 1, kLong), IsOk());
  }
  void Fill(RegionKind kind, uint64_t seed) {
    ToGpu(BytesOf(seed), memory->mutable_base(kind));
  }
  bool Holds(RegionKind kind, Rank rank, uint64_t seed) const {
    return FromGpu(memory->base(kind, rank), kSize) == BytesOf(seed);
  }

 private:
  void Take(absl::StatusOr<std::unique_ptr<WorkerMemory>> made) {
    EndUnless(made.status());
    memory = *std::move(made);
  }
  static void EndUnless(const absl::Status& status) {
    EXPECT_THAT(status, IsOk());
    if (status.ok()) return;
    std::fflush(nullptr);
    ::_exit(99);
  }
};

class RegionProcessesTest : public testing::Test {
 protected:
  RegionProcessesTest() {
    auto vault = Vault::Start(directory_.path(), [](const VaultReport&) {});
    EXPECT_THAT(vault, IsOk());
    vault_ = *std::move(vault);
  }

  Child Fork(Rank rank, const std::function<int(VaultClient&)>& body) {
    Child child([&] {
      auto client = VaultClient::Connect(directory_.path(), rank, kLong);
      EXPECT_THAT(client, IsOk());
      return body(**client);
    });
    vault_->Allow(child.pid(), rank);
    return child;
  }
  void Kill(Child& child) {
    const pid_t pid = child.pid();
    child.Kill();
    vault_->Disallow(pid);
  }

  PrivateDirectory directory_;
  std::unique_ptr<Vault> vault_;
};

}  // namespace moebius
