// The launcher's vault, in the same process as its workers.
#pragma once

#include <array>
#include <cstddef>
#include <functional>
#include <memory>
#include <optional>

#include "common/base/ids.h"
#include "common/vault/memory_vault.h"
#include "worker/memory/region.h"
#include "worker/memory/signals.h"

namespace moebius::simulation {

// VaultStore
//
// Keeps a duplicate of every descriptor, as the launcher does, and a mapping of
// its own through which invariants are checked.
class VaultStore {
 public:
  absl::Status Deposit(RegionKind kind, Rank rank, int fd, uint64_t size_bytes);
  absl::StatusOr<RegionDescriptor> Withdraw(RegionKind kind, Rank rank);
  absl::StatusOr<RegionDescriptor> Borrow(RegionKind kind, Rank rank);
  bool Has(RegionKind kind, Rank rank) const {
    return kept_[rank][static_cast<size_t>(kind)].fd.get() >= 0;
  }
  // Forgets the memory of a rank.
  void Lose(Rank rank);

  // nullptr before the deposit.
  const std::byte* View(RegionKind kind, Rank rank) const;
  std::byte* MutableView(RegionKind kind, Rank rank) const;
  int64_t SizeBytes(RegionKind kind, Rank rank) const;
  const SignalsBlock* Signals(Rank rank) const;

 private:
  struct Kept {
    UniqueFd fd;
    uint64_t size_bytes = 0;
    std::unique_ptr<Region> view;
  };
  std::array<std::array<Kept, kNumRegionKinds>, kMaxRanks> kept_;
};

}  // namespace moebius::simulation
