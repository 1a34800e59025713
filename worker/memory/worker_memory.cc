#include "worker/memory/worker_memory.h"

#include <sys/stat.h>

#include <algorithm>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/base/deadline.h"
#include "common/base/status_macros.h"
#include "common/faults/fault_point.h"

namespace moebius {
namespace {

constexpr std::array<RegionKind, kNumRegionKinds> kAllKinds = {
    RegionKind::kExperts, RegionKind::kDense, RegionKind::kKv,
    RegionKind::kExchange, RegionKind::kSignals};
constexpr std::array<RegionKind, 4> kPeerKinds = {
    RegionKind::kExperts, RegionKind::kKv, RegionKind::kExchange,
    RegionKind::kSignals};

// Devices push into the inboxes and flags of the exchange region.
Region::Access PeerAccess(RegionKind kind, RegionClass region_class) {
  const bool pushed =
      kind == RegionKind::kExchange && region_class != RegionClass::kMemfd;
  return kind == RegionKind::kSignals || pushed ? Region::Access::kReadWrite
                                                : Region::Access::kReadOnly;
}

std::string NameOf(RegionKind kind, Rank rank) {
  return absl::StrCat("moebius-", std::string(RegionKindName(kind)), "-", rank);
}

int64_t BytesOf(const MemoryGeometry& geometry, RegionKind kind) {
  const int64_t bytes = geometry[kind];
  return kind == RegionKind::kSignals
             ? std::max<int64_t>(bytes, sizeof(SignalsBlock))
             : bytes;
}

// The same status, saying which region it is about.
absl::Status About(RegionKind kind, Rank rank, const absl::Status& status) {
  if (status.ok()) return status;
  return absl::Status(status.code(),
                      absl::StrCat(std::string(RegionKindName(kind)),
                                   " of rank ", rank, ": ", status.message()));
}

// Whether two descriptors of signals are of one memory. (Those of a device all
// have one inode.)
bool SameMemory(int a, int b) {
  struct stat of_a {
  }, of_b{};
  return ::fstat(a, &of_a) == 0 && ::fstat(b, &of_b) == 0 &&
         of_a.st_dev == of_b.st_dev && of_a.st_ino == of_b.st_ino;
}

}  // namespace

WorkerMemory::WorkerMemory(Rank rank, int num_ranks,
                           const WorkerMemoryOptions& options)
    : rank_(rank), num_ranks_(num_ranks), options_(options) {}

WorkerMemory::~WorkerMemory() = default;

absl::StatusOr<std::unique_ptr<WorkerMemory>> WorkerMemory::New(
    Rank rank, int num_ranks, const WorkerMemoryOptions& options) {
  if (num_ranks < 1 || num_ranks > kMaxRanks || rank < 0 || rank >= num_ranks) {
    return absl::InvalidArgumentError(
        absl::StrCat("rank ", rank, " of ", num_ranks));
  }
  return std::unique_ptr<WorkerMemory>(
      new WorkerMemory(rank, num_ranks, options));
}

RegionOptions WorkerMemory::OptionsOf(RegionKind kind) const {
  RegionOptions options = options_.region;
  if (kind == RegionKind::kExperts && options_.prefault_experts) {
    options.prefault = true;
  }
  return options;
}

const RegionMaker& WorkerMemory::MakerOf(RegionKind kind) const {
  return kind == RegionKind::kSignals ? MemfdMaker() : *options_.maker;
}

absl::Status WorkerMemory::CheckClass(RegionKind kind,
                                      const RegionDescriptor& from) const {
  if (from.region_class == MakerOf(kind).region_class()) {
    return absl::OkStatus();
  }
  return absl::FailedPreconditionError(
      "memory of another class; has the group one kind of device?");
}

void WorkerMemory::Show(RegionKind kind, Rank rank, const Region& region) {
  bases_[static_cast<size_t>(kind)][rank] = region.base();
  if (kind == RegionKind::kSignals) signals_[rank] = region.mutable_base();
}

absl::Status WorkerMemory::CreateRegions(const MemoryGeometry& geometry) {
  for (RegionKind kind : kAllKinds) {
    RETURN_IF_ERROR(About(kind, rank_, FaultPoint(FaultId::kWorkerMemory)));
    auto region = MakerOf(kind).Create(
        NameOf(kind, rank_), BytesOf(geometry, kind), OptionsOf(kind));
    if (!region.ok()) return About(kind, rank_, region.status());
    own_[static_cast<size_t>(kind)] = *std::move(region);
    Show(kind, rank_, own(kind));
  }
  InitSignals(signals_[rank_], rank_, num_ranks_, options_.incarnation);
  peers_mapped_ = num_ranks_ == 1;
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<WorkerMemory>> WorkerMemory::Create(
    Rank rank, int num_ranks, const MemoryGeometry& geometry,
    MemoryVault& vault, const WorkerMemoryOptions& options) {
  ASSIGN_OR_RETURN(auto memory, New(rank, num_ranks, options));
  RETURN_IF_ERROR(memory->CreateRegions(geometry));
  for (RegionKind kind : kAllKinds) {
    const Region& region = memory->own(kind);
    RETURN_IF_ERROR(
        About(kind, rank,
              vault.Deposit(kind, memory->MakerOf(kind).region_class(),
                            region.descriptor(), region.size_bytes(),
                            options.vault_timeout)));
  }
  return memory;
}

absl::StatusOr<std::unique_ptr<WorkerMemory>> WorkerMemory::Adopt(
    Rank rank, int num_ranks, const MemoryGeometry& geometry,
    MemoryVault& vault, const WorkerMemoryOptions& options) {
  ASSIGN_OR_RETURN(auto memory, New(rank, num_ranks, options));
  for (RegionKind kind : kAllKinds) {
    auto kept = vault.Withdraw(kind, options.vault_timeout);
    if (!kept.ok()) return About(kind, rank, kept.status());
    RETURN_IF_ERROR(About(kind, rank, memory->CheckClass(kind, *kept)));
    auto region = memory->MakerOf(kind).Map(
        std::move(kept->fd), BytesOf(geometry, kind),
        Region::Access::kReadWrite, memory->OptionsOf(kind));
    if (absl::IsInvalidArgument(region.status())) {
      return About(kind, rank,
                   absl::FailedPreconditionError(region.status().message()));
    }
    if (!region.ok()) return About(kind, rank, region.status());
    memory->own_[static_cast<size_t>(kind)] = *std::move(region);
    memory->Show(kind, rank, memory->own(kind));
  }
  RETURN_IF_ERROR(CheckSignals(memory->signals_[rank], rank, num_ranks));
  SignalsBlock* const block = memory->own_signals();
  // The predecessor may have died asleep; its arrival and progress stand.
  block->arrival.asleep.store(0, std::memory_order_relaxed);
  block->identity.incarnation.store(options.incarnation.value,
                                    std::memory_order_release);
  memory->peers_mapped_ = num_ranks == 1;
  return memory;
}

absl::StatusOr<std::unique_ptr<Region>> WorkerMemory::MapPeer(
    RegionKind kind, Rank peer, UniqueFd fd) const {
  const RegionMaker& maker = MakerOf(kind);
  auto region =
      maker.Map(std::move(fd), size_bytes(kind),
                PeerAccess(kind, maker.region_class()), OptionsOf(kind));
  if (absl::IsInvalidArgument(region.status())) {
    return absl::FailedPreconditionError(absl::StrCat(
        region.status().message(), "; do the ranks have one geometry?"));
  }
  if (region.ok() && kind == RegionKind::kSignals) {
    RETURN_IF_ERROR(CheckSignals((*region)->base(), peer, num_ranks_));
  }
  return region;
}

absl::Status WorkerMemory::MapPeers(MemoryVault& vault,
                                    absl::Duration timeout) {
  if (peers_mapped_) return absl::OkStatus();
  const Deadline deadline = Deadline::After(timeout);
  struct Mapped {
    RegionKind kind;
    Rank rank;
    std::unique_ptr<Region> region;
  };
  std::vector<Mapped> mapped;
  std::array<Incarnation, kMaxRanks> whole{};
  for (Rank peer = 0; peer < num_ranks_; ++peer) {
    if (peer == rank_) continue;
    // A worker deposits its signals last. If they are the same before and
    // after, all that lies between is of one incarnation.
    auto before = vault.Borrow(RegionKind::kSignals, peer, deadline.left());
    if (!before.ok()) return About(RegionKind::kSignals, peer, before.status());
    for (RegionKind kind : kPeerKinds) {
      auto borrowed = vault.Borrow(kind, peer, deadline.left());
      if (!borrowed.ok()) return About(kind, peer, borrowed.status());
      RETURN_IF_ERROR(About(kind, peer, CheckClass(kind, *borrowed)));
      auto region = MapPeer(kind, peer, std::move(borrowed->fd));
      if (!region.ok()) return About(kind, peer, region.status());
      mapped.push_back({kind, peer, *std::move(region)});
    }
    const Region& signals = *mapped.back().region;
    if (SameMemory(before->fd.get(), signals.descriptor())) {
      whole[peer] =
          Incarnation{SignalsAt(signals.mutable_base())->identity.memory};
    }
  }
  for (Mapped& one : mapped) {
    Show(one.kind, one.rank, *one.region);
    peers_[one.rank][static_cast<size_t>(one.kind)] = std::move(one.region);
  }
  whole_ = whole;
  peers_mapped_ = true;
  return absl::OkStatus();
}

absl::Status WorkerMemory::MapAnew(Rank peer, Incarnation memory,
                                   MemoryVault& vault) {
  if (peer == rank_ || whole_[peer] == memory) return absl::OkStatus();
  whole_[peer] = Incarnation{};
  for (RegionKind kind : kPeerKinds) {
    auto borrowed = vault.Borrow(kind, peer, options_.vault_timeout);
    if (!borrowed.ok()) return About(kind, peer, borrowed.status());
    RETURN_IF_ERROR(About(kind, peer, CheckClass(kind, *borrowed)));
    RETURN_IF_ERROR(About(kind, peer,
                          peers_[peer][static_cast<size_t>(kind)]->Replace(
                              std::move(borrowed->fd))));
  }
  RETURN_IF_ERROR(CheckSignals(signals_[peer], peer, num_ranks_));
  // That incarnation has said Hello, so what the vault gave is its own or of a
  // later one, and of a later one if anything is: the signals came last.
  if (memory_of(peer) == memory) {
    whole_[peer] = memory;
    return absl::OkStatus();
  }
  return absl::AbortedError(
      absl::StrCat("the memory of rank ", peer, " is of its incarnation ",
                   memory_of(peer).value, ", not ", memory.value));
}

absl::Status WorkerMemory::ShareInProcess(const WorkerMemory& peer) {
  for (RegionKind kind : kPeerKinds) {
    const Region& own = peer.own(kind);
    UniqueFd copy;
    if (kind == RegionKind::kSignals) {
      ASSIGN_OR_RETURN(copy, Duplicate(own.descriptor()));
    } else {
      ASSIGN_OR_RETURN(copy, MakerOf(kind).ForPeer(own));
    }
    auto region = MapPeer(kind, peer.rank_, std::move(copy));
    if (!region.ok()) return About(kind, peer.rank_, region.status());
    Show(kind, peer.rank_, **region);
    peers_[peer.rank_][static_cast<size_t>(kind)] = *std::move(region);
  }
  whole_[peer.rank_] = memory_of(peer.rank_);
  return absl::OkStatus();
}

absl::StatusOr<std::vector<std::unique_ptr<WorkerMemory>>>
WorkerMemory::CreateInProcess(int num_ranks, const MemoryGeometry& geometry,
                              const WorkerMemoryOptions& options) {
  std::vector<std::unique_ptr<WorkerMemory>> memories;
  // Checked here, too: a group of no rank would be no error of New.
  if (num_ranks < 1 || num_ranks > kMaxRanks) {
    return absl::InvalidArgumentError(absl::StrCat(num_ranks, " ranks"));
  }
  for (Rank rank = 0; rank < num_ranks; ++rank) {
    ASSIGN_OR_RETURN(auto memory, New(rank, num_ranks, options));
    RETURN_IF_ERROR(memory->CreateRegions(geometry));
    memories.push_back(std::move(memory));
  }
  for (const auto& memory : memories) {
    for (const auto& peer : memories) {
      if (peer == memory) continue;
      RETURN_IF_ERROR(memory->ShareInProcess(*peer));
    }
    memory->peers_mapped_ = true;
  }
  return memories;
}

}  // namespace moebius
