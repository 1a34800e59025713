#include "worker/memory/worker_memory.h"

#include <fcntl.h>
#include <sys/mman.h>

#include <cstring>
#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "common/base/status_macros.h"
#include "common/vault/vault_client.h"
#include "deploy/launcher/vault.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/status_matchers.h"
#include "tests/unit/worker/memory/processes.h"
#include "worker/peers/group_barrier.h"

namespace moebius {
namespace {

using testing::AllOf;
using testing::HasSubstr;

constexpr absl::Duration kLong = absl::Seconds(10);
constexpr RegionKind kKinds[] = {RegionKind::kExperts, RegionKind::kDense,
                                 RegionKind::kKv, RegionKind::kExchange,
                                 RegionKind::kSignals};

MemoryGeometry SmallGeometry() {
  MemoryGeometry geometry;
  geometry[RegionKind::kExperts] = 3 << 20;
  geometry[RegionKind::kDense] = 100;
  geometry[RegionKind::kKv] = 1 << 20;
  geometry[RegionKind::kExchange] = 0;
  return geometry;
}

// A launcher's vault in this process; workers are forked or played.
class WorkerMemoryTest : public testing::Test {
 protected:
  WorkerMemoryTest() {
    auto vault = Vault::Start(directory_.path(), [](const VaultReport&) {});
    EXPECT_THAT(vault, IsOk());
    vault_ = *std::move(vault);
  }

  std::unique_ptr<VaultClient> Connect(Rank rank) {
    auto client = VaultClient::Connect(directory_.path(), rank, kLong);
    EXPECT_THAT(client, IsOk());
    return *std::move(client);
  }

  // A forked worker of `rank`, which the vault listens to.
  Child Worker(Rank rank, const std::function<int(VaultClient&)>& body) {
    Child child([&] { return body(*Connect(rank)); });
    vault_->Allow(child.pid(), rank);
    return child;
  }

  // What a launcher does when a worker has died.
  void Bury(Child& child) {
    const pid_t pid = child.pid();
    child.Kill();
    vault_->Disallow(pid);
  }

  PrivateDirectory directory_;
  std::unique_ptr<Vault> vault_;
};

TEST_F(WorkerMemoryTest, ImpossibleGroupsAreRefused) {
  vault_->Allow(::getpid(), 0);
  const auto client = Connect(0);
  for (const auto& [rank, num_ranks] :
       {std::pair(0, 0), std::pair(-1, 2), std::pair(2, 2),
        std::pair(0, kMaxRanks + 1)}) {
    EXPECT_THAT(WorkerMemory::Create(rank, num_ranks, SmallGeometry(), *client),
                StatusIs(absl::StatusCode::kInvalidArgument));
  }
  EXPECT_THAT(WorkerMemory::CreateInProcess(0, SmallGeometry()),
              StatusIs(absl::StatusCode::kInvalidArgument));
  EXPECT_THAT(WorkerMemory::CreateInProcess(kMaxRanks + 1, SmallGeometry()),
              StatusIs(absl::StatusCode::kInvalidArgument));
}

TEST_F(WorkerMemoryTest, ImpossibleSizeNamesTheRegion) {
  MemoryGeometry geometry = SmallGeometry();
  geometry[RegionKind::kKv] = -1;
  EXPECT_THAT(
      WorkerMemory::CreateInProcess(2, geometry),
      StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("kv of rank 0")));
}

TEST_F(WorkerMemoryTest, PeerThatNeverDepositsIsADeadlineThatNamesIt) {
  vault_->Allow(::getpid(), 0);
  const auto client = Connect(0);
  const auto memory = WorkerMemory::Create(0, 2, SmallGeometry(), *client);
  ASSERT_THAT(memory, IsOk());
  EXPECT_THAT((*memory)->MapPeers(*client, absl::Milliseconds(5)),
              StatusIs(absl::StatusCode::kDeadlineExceeded,
                       HasSubstr("signals of rank 1")));
  EXPECT_FALSE((*memory)->peers_mapped());
  EXPECT_EQ((*memory)->base(RegionKind::kKv, 1), nullptr);
}

// A vault in which the peer is replaced between two borrowings.
class ChangingVault final : public MemoryVault {
 public:
  absl::Status Deposit(RegionKind kind, RegionClass region_class, int fd,
                       uint64_t size_bytes, absl::Duration) override {
    auto copy = Duplicate(fd);
    RETURN_IF_ERROR(copy.status());
    kept_[{depositor, kind}] = {*std::move(copy), size_bytes, region_class};
    return absl::OkStatus();
  }
  absl::StatusOr<RegionDescriptor> Withdraw(RegionKind,
                                            absl::Duration) override {
    return absl::NotFoundError("nothing");
  }
  absl::StatusOr<RegionDescriptor> Borrow(RegionKind kind, Rank rank,
                                          absl::Duration) override {
    if (kind == change_at && --borrowings == 0) change();
    const RegionDescriptor& kept = kept_[{rank, kind}];
    ASSIGN_OR_RETURN(UniqueFd fd, Duplicate(kept.fd.get()));
    return RegionDescriptor{std::move(fd), kept.size_bytes, kept.region_class};
  }

  Rank depositor = 0;
  // Before the `borrowings`th borrowing of this kind.
  RegionKind change_at = RegionKind::kSignals;
  int borrowings = 0;
  std::function<void()> change;

 private:
  std::map<std::pair<Rank, RegionKind>, RegionDescriptor> kept_;
};

// Regions of a device, as far as the host sees them: host memory behind a
// character device that does not tell it.
class DeviceMaker final : public RegionMaker {
 public:
  RegionClass region_class() const override { return RegionClass::kDevice; }
  absl::StatusOr<std::unique_ptr<Region>> Create(
      const std::string&, int64_t size_bytes,
      const RegionOptions&) const override {
    return Make(UniqueFd(::open("/dev/zero", O_RDWR | O_CLOEXEC)), size_bytes,
                Region::Access::kReadWrite);
  }
  absl::StatusOr<std::unique_ptr<Region>> Map(
      UniqueFd fd, int64_t size_bytes, Region::Access access,
      const RegionOptions&) const override {
    return Make(std::move(fd), size_bytes, access);
  }
  absl::StatusOr<UniqueFd> ForPeer(const Region& region) const override {
    return Duplicate(region.descriptor());
  }

 private:
  class DeviceRegion final : public Region {
   public:
    DeviceRegion(UniqueFd fd, std::byte* base, int64_t size_bytes,
                 Access access)
        : Region(std::move(fd), base, size_bytes, access) {}
    ~DeviceRegion() override { ::munmap(base_, size_bytes_); }
    absl::Status Replace(UniqueFd fd) override {
      fd_ = std::move(fd);
      return absl::OkStatus();
    }
  };
  static absl::StatusOr<std::unique_ptr<Region>> Make(UniqueFd fd,
                                                      int64_t size_bytes,
                                                      Region::Access access) {
    const int64_t rounded = RoundUpToRegion(size_bytes);
    void* const base = ::mmap(nullptr, rounded, PROT_READ | PROT_WRITE,
                              MAP_PRIVATE, fd.get(), 0);
    if (base == MAP_FAILED) return absl::ResourceExhaustedError("mmap");
    return std::make_unique<DeviceRegion>(
        std::move(fd), static_cast<std::byte*>(base), rounded, access);
  }
};

TEST_F(WorkerMemoryTest, AGroupOfADeviceHasHostSignalsAndKnowsItsClass) {
  vault_->Allow(::getpid(), 0);
  const auto client = Connect(0);
  const DeviceMaker maker;
  WorkerMemoryOptions options;
  options.maker = &maker;
  ASSERT_THAT(WorkerMemory::Create(0, 1, SmallGeometry(), *client, options),
              IsOk());
  EXPECT_EQ(vault_->NumKept(0), kNumRegionKinds);
  for (const RegionKind kind : {RegionKind::kExperts, RegionKind::kDense,
                                RegionKind::kKv, RegionKind::kExchange}) {
    const auto kept = client->Withdraw(kind, kLong);
    ASSERT_THAT(kept, IsOk());
    EXPECT_EQ(kept->region_class, RegionClass::kDevice);
  }
  EXPECT_EQ(client->Withdraw(RegionKind::kSignals, kLong)->region_class,
            RegionClass::kMemfd);
  // A successor on the host cannot go on with it; one on the device can.
  EXPECT_THAT(
      WorkerMemory::Adopt(0, 1, SmallGeometry(), *client),
      StatusIs(absl::StatusCode::kFailedPrecondition,
               HasSubstr("experts of rank 0: memory of another class")));
  EXPECT_THAT(WorkerMemory::Adopt(0, 1, SmallGeometry(), *client, options),
              IsOk());
}

TEST(WorkerMemoryInProcess, PeersPushIntoExchangeRegionsOfADeviceAlone) {
  const DeviceMaker maker;
  WorkerMemoryOptions options;
  const auto host = WorkerMemory::CreateInProcess(2, SmallGeometry(), options);
  ASSERT_THAT(host, IsOk());
  EXPECT_EQ((*host)[0]->mutable_exchange(1), nullptr);
  EXPECT_EQ((*host)[0]->mutable_exchange(0),
            (*host)[0]->mutable_base(RegionKind::kExchange));
  options.maker = &maker;
  const auto device =
      WorkerMemory::CreateInProcess(2, SmallGeometry(), options);
  ASSERT_THAT(device, IsOk());
  EXPECT_EQ((*device)[0]->mutable_exchange(1),
            (*device)[0]->base(RegionKind::kExchange, 1));
  EXPECT_NE((*device)[0]->mutable_exchange(1), nullptr);
}

class ReplacedPeerTest : public testing::Test {
 protected:
  ReplacedPeerTest() {
    ours_ = Make(0, 1);
    Live(1);
  }
  std::unique_ptr<WorkerMemory> Make(Rank rank, uint64_t incarnation) {
    vault_.depositor = rank;
    WorkerMemoryOptions options;
    options.incarnation = Incarnation{incarnation};
    auto made = WorkerMemory::Create(rank, 2, SmallGeometry(), vault_, options);
    EXPECT_THAT(made, IsOk());
    return *std::move(made);
  }
  // A successor of the peer with new memory, its number in every region.
  void Live(uint64_t incarnation) {
    peer_ = Make(1, incarnation);
    for (RegionKind kind :
         {RegionKind::kExperts, RegionKind::kKv, RegionKind::kExchange}) {
      *peer_->mutable_base(kind) = static_cast<std::byte>(incarnation);
    }
  }
  void ExpectSeen(int incarnation) {
    for (RegionKind kind :
         {RegionKind::kExperts, RegionKind::kKv, RegionKind::kExchange}) {
      EXPECT_EQ(static_cast<int>(*ours_->base(kind, 1)), incarnation)
          << RegionKindName(kind);
    }
  }

  ChangingVault vault_;
  std::unique_ptr<WorkerMemory> ours_, peer_;
};

TEST_F(ReplacedPeerTest, WhatWasMappedInPartIsMappedAnewAsAWhole) {
  ASSERT_THAT(ours_->MapPeers(vault_, kLong), IsOk());
  ExpectSeen(1);
  Live(2);
  vault_.borrowings = 1;
  vault_.change = [this] { Live(3); };
  EXPECT_THAT(
      ours_->MapAnew(1, Incarnation{2}, vault_),
      StatusIs(absl::StatusCode::kAborted, HasSubstr("incarnation 3, not 2")));
  ASSERT_THAT(ours_->MapAnew(1, Incarnation{3}, vault_), IsOk());
  ExpectSeen(3);
}

TEST_F(ReplacedPeerTest, APeerReplacedWhileItWasMappedFirstIsMappedAnew) {
  vault_.borrowings = 2;  // the first one is before all else
  vault_.change = [this] { Live(2); };
  ASSERT_THAT(ours_->MapPeers(vault_, kLong), IsOk());
  ASSERT_THAT(ours_->MapAnew(1, Incarnation{2}, vault_), IsOk());
  ExpectSeen(2);
}

TEST_F(WorkerMemoryTest, PeerOfAnotherGeometryIsRefused) {
  Event done;
  Child peer = Worker(1, [&](VaultClient& client) {
    MemoryGeometry geometry = SmallGeometry();
    geometry[RegionKind::kKv] = 10 << 20;
    const auto memory = WorkerMemory::Create(1, 2, geometry, client);
    EXPECT_THAT(memory, IsOk());
    return done.Wait() ? 0 : 1;
  });
  vault_->Allow(::getpid(), 0);
  const auto client = Connect(0);
  const auto memory = WorkerMemory::Create(0, 2, SmallGeometry(), *client);
  ASSERT_THAT(memory, IsOk());
  EXPECT_THAT(
      (*memory)->MapPeers(*client, kLong),
      StatusIs(absl::StatusCode::kFailedPrecondition,
               AllOf(HasSubstr("kv of rank 1"), HasSubstr("one geometry"))));
  done.Set();
  EXPECT_EQ(peer.Join(), 0);
}

TEST_F(WorkerMemoryTest, SuccessorThatDoesNotAdoptIsRefused) {
  vault_->Allow(::getpid(), 0);
  const auto client = Connect(0);
  ASSERT_THAT(WorkerMemory::Create(0, 1, SmallGeometry(), *client), IsOk());
  EXPECT_THAT(
      WorkerMemory::Create(0, 1, SmallGeometry(), *client),
      StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr("already")));
}

TEST_F(WorkerMemoryTest, NothingKeptCannotBeAdopted) {
  vault_->Allow(::getpid(), 0);
  const auto client = Connect(0);
  EXPECT_THAT(WorkerMemory::Adopt(0, 1, SmallGeometry(), *client),
              StatusIs(absl::StatusCode::kNotFound));
}

TEST_F(WorkerMemoryTest, AnotherGeometryCannotBeAdopted) {
  vault_->Allow(::getpid(), 0);
  const auto client = Connect(0);
  ASSERT_THAT(WorkerMemory::Create(0, 1, SmallGeometry(), *client), IsOk());
  MemoryGeometry other = SmallGeometry();
  other[RegionKind::kExperts] = 5 << 20;
  EXPECT_THAT(WorkerMemory::Adopt(0, 1, other, *client),
              StatusIs(absl::StatusCode::kFailedPrecondition,
                       HasSubstr("experts of rank 0")));
  // Nor as another group's.
  EXPECT_THAT(WorkerMemory::Adopt(0, 2, SmallGeometry(), *client),
              StatusIs(absl::StatusCode::kFailedPrecondition));
}

TEST_F(WorkerMemoryTest, ProcessesSeeWhatPeersWriteAndCannotWriteIt) {
  constexpr int kRanks = 3;
  std::vector<Child> workers;
  for (Rank rank = 0; rank < kRanks; ++rank) {
    workers.push_back(Worker(rank, [rank](VaultClient& client) {
      const auto created =
          WorkerMemory::Create(rank, kRanks, SmallGeometry(), client);
      EXPECT_THAT(created, IsOk());
      const WorkerMemory& memory = **created;
      EXPECT_THAT((*created)->MapPeers(client, kLong), IsOk());
      GroupBarrier barrier(rank, memory.all_signals(), {});
      for (RegionKind kind : kKinds) {
        memory.mutable_base(kind)[4000] = static_cast<std::byte>(10 + rank);
      }
      EXPECT_THAT(barrier.Wait(1, kLong), IsOk());
      for (Rank peer = 0; peer < kRanks; ++peer) {
        if (peer == rank) continue;
        EXPECT_EQ(memory.base(RegionKind::kDense, peer), nullptr);
        for (RegionKind kind : {RegionKind::kExperts, RegionKind::kKv,
                                RegionKind::kExchange, RegionKind::kSignals}) {
          const std::byte* const base = memory.base(kind, peer);
          EXPECT_EQ(base[4000], static_cast<std::byte>(10 + peer));
          const int writable = ::mprotect(const_cast<std::byte*>(base), 4096,
                                          PROT_READ | PROT_WRITE);
          EXPECT_EQ(writable, kind == RegionKind::kSignals ? 0 : -1);
        }
      }
      EXPECT_THAT(barrier.Wait(2, kLong), IsOk());
      return 0;
    }));
  }
  for (Child& worker : workers) EXPECT_EQ(worker.Join(), 0);
  for (Rank rank = 0; rank < kRanks; ++rank) {
    EXPECT_EQ(vault_->NumKept(rank), kNumRegionKinds);
  }
}

TEST_F(WorkerMemoryTest, MemoryOutlivesAKilledOwnerAndASuccessorGoesOn) {
  constexpr int kRanks = 2;
  Event filled, adopted, checked;
  Child owner = Worker(0, [&](VaultClient& client) {
    const auto memory =
        WorkerMemory::Create(0, kRanks, SmallGeometry(), client);
    EXPECT_THAT(memory, IsOk());
    for (RegionKind kind : kKinds) {
      if (kind == RegionKind::kSignals) continue;
      std::memset((*memory)->mutable_base(kind), 0x5a,
                  (*memory)->size_bytes(kind));
    }
    StoreSwitchProgress((*memory)->own_signals(),
                        {Epoch{9}, Side::kHigh, 3, 1});
    filled.Set();
    for (;;) ::pause();
    return 0;
  });
  Child peer = Worker(1, [&](VaultClient& client) {
    const auto memory =
        WorkerMemory::Create(1, kRanks, SmallGeometry(), client);
    EXPECT_THAT(memory, IsOk());
    EXPECT_THAT((*memory)->MapPeers(client, kLong), IsOk());
    // The mapping of the dead owner shows what its successor writes.
    EXPECT_TRUE(adopted.Wait());
    EXPECT_EQ((*memory)->base(RegionKind::kKv, 0)[1], std::byte{0x77});
    EXPECT_EQ((*memory)->base(RegionKind::kKv, 0)[2], std::byte{0x5a});
    EXPECT_EQ(SignalsAt((*memory)->signals(0))->identity.incarnation.load(),
              2u);
    GroupBarrier barrier(1, (*memory)->all_signals(), {});
    EXPECT_THAT(barrier.Wait(1, kLong), IsOk());
    checked.Set();
    return 0;
  });
  ASSERT_TRUE(filled.Wait());
  Bury(owner);
  EXPECT_EQ(vault_->NumKept(0), kNumRegionKinds);
  Child successor = Worker(0, [&](VaultClient& client) {
    const auto memory = WorkerMemory::Adopt(0, kRanks, SmallGeometry(), client,
                                            {.incarnation = Incarnation{2}});
    EXPECT_THAT(memory, IsOk());
    for (RegionKind kind : kKinds) {
      if (kind == RegionKind::kSignals) continue;
      const std::byte* const base = (*memory)->base(kind, 0);
      for (int64_t i = 0; i < (*memory)->size_bytes(kind); ++i) {
        if (base[i] != std::byte{0x5a}) return 1;
      }
    }
    EXPECT_EQ(LoadSwitchProgress(*(*memory)->own_signals()),
              (SwitchProgress{Epoch{9}, Side::kHigh, 3, 1}));
    EXPECT_THAT((*memory)->MapPeers(client, kLong), IsOk());
    (*memory)->mutable_base(RegionKind::kKv)[1] = std::byte{0x77};
    adopted.Set();
    GroupBarrier barrier(0, (*memory)->all_signals(), {});
    EXPECT_THAT(barrier.Wait(1, kLong), IsOk());
    return checked.Wait() ? 0 : 2;
  });
  EXPECT_EQ(peer.Join(), 0);
  EXPECT_EQ(successor.Join(), 0);
}

// Nobody else holds a dead worker's memory, so the kernel frees it then.
TEST_F(WorkerMemoryTest, ForgottenMemoryIsHeldByNoDescriptor) {
  const auto count = [] {
    int regions = 0;
    std::error_code gone;
    for (const auto& entry :
         std::filesystem::directory_iterator("/proc/self/fd")) {
      const std::string target =
          std::filesystem::read_symlink(entry.path(), gone).string();
      if (target.find("memfd:moebius-") != std::string::npos) ++regions;
    }
    return regions;
  };
  Child worker = Worker(0, [&](VaultClient& client) {
    return WorkerMemory::Create(0, 1, SmallGeometry(), client).ok() ? 0 : 1;
  });
  EXPECT_EQ(worker.Join(), 0);
  EXPECT_EQ(count(), kNumRegionKinds);
  vault_->Forget(0);
  EXPECT_EQ(count(), 0);
}

TEST_F(WorkerMemoryTest, LeavesNoDescriptor) {
  const int before = CountDescriptors();
  {
    const auto memories = WorkerMemory::CreateInProcess(4, SmallGeometry());
    ASSERT_THAT(memories, IsOk());
  }
  EXPECT_EQ(CountDescriptors(), before);
}

TEST_F(WorkerMemoryTest, InProcessGroupsAreAsStrictAsProcesses) {
  const auto memories = WorkerMemory::CreateInProcess(2, SmallGeometry());
  ASSERT_THAT(memories, IsOk());
  const WorkerMemory& zero = *(*memories)[0];
  const WorkerMemory& one = *(*memories)[1];
  EXPECT_TRUE(zero.peers_mapped());
  one.mutable_base(RegionKind::kKv)[5] = std::byte{9};
  EXPECT_EQ(zero.base(RegionKind::kKv, 1)[5], std::byte{9});
  EXPECT_EQ(zero.base(RegionKind::kDense, 1), nullptr);
  EXPECT_EQ(::mprotect(const_cast<std::byte*>(zero.base(RegionKind::kKv, 1)),
                       4096, PROT_READ | PROT_WRITE),
            -1);
  EXPECT_EQ(zero.bases(RegionKind::kKv).size(), 2u);
  EXPECT_EQ(zero.base(RegionKind::kKv, 0), zero.mutable_base(RegionKind::kKv));
}

}  // namespace
}  // namespace moebius
