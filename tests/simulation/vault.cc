#include "tests/simulation/vault.h"

#include <utility>

#include "absl/status/status.h"
#include "common/base/status_macros.h"

namespace moebius::simulation {

absl::Status VaultStore::Deposit(RegionKind kind, Rank rank, int fd,
                                 uint64_t size_bytes) {
  Kept& kept = kept_[rank][static_cast<size_t>(kind)];
  if (kept.fd.get() >= 0) {
    return absl::FailedPreconditionError("there is one already");
  }
  ASSIGN_OR_RETURN(kept.fd, Duplicate(fd));
  kept.size_bytes = size_bytes;
  RegionOptions options;
  options.huge_pages = false;
  ASSIGN_OR_RETURN(UniqueFd mine, Duplicate(fd));
  ASSIGN_OR_RETURN(
      kept.view,
      AdoptMemfdRegion(std::move(mine), static_cast<int64_t>(size_bytes),
                       Region::Access::kReadWrite, options));
  return absl::OkStatus();
}

absl::StatusOr<RegionDescriptor> VaultStore::Withdraw(RegionKind kind,
                                                      Rank rank) {
  const Kept& kept = kept_[rank][static_cast<size_t>(kind)];
  if (kept.fd.get() < 0) return absl::NotFoundError("nothing is kept");
  ASSIGN_OR_RETURN(UniqueFd copy, Duplicate(kept.fd.get()));
  return RegionDescriptor{std::move(copy), kept.size_bytes};
}

absl::StatusOr<RegionDescriptor> VaultStore::Borrow(RegionKind kind,
                                                    Rank rank) {
  const Kept& kept = kept_[rank][static_cast<size_t>(kind)];
  if (kept.fd.get() < 0) return absl::NotFoundError("nothing is kept");
  UniqueFd copy;
  if (kind == RegionKind::kSignals) {
    ASSIGN_OR_RETURN(copy, Duplicate(kept.fd.get()));
  } else {
    ASSIGN_OR_RETURN(copy, ReopenReadOnly(kept.fd.get()));
  }
  return RegionDescriptor{std::move(copy), kept.size_bytes};
}

void VaultStore::Lose(Rank rank) {
  for (Kept& kept : kept_[rank]) kept = Kept{};
}

const std::byte* VaultStore::View(RegionKind kind, Rank rank) const {
  return MutableView(kind, rank);
}

std::byte* VaultStore::MutableView(RegionKind kind, Rank rank) const {
  const Kept& kept = kept_[rank][static_cast<size_t>(kind)];
  return kept.view == nullptr ? nullptr : kept.view->mutable_base();
}

int64_t VaultStore::SizeBytes(RegionKind kind, Rank rank) const {
  return static_cast<int64_t>(
      kept_[rank][static_cast<size_t>(kind)].size_bytes);
}

const SignalsBlock* VaultStore::Signals(Rank rank) const {
  std::byte* const base = MutableView(RegionKind::kSignals, rank);
  return base == nullptr ? nullptr : SignalsAt(base);
}

}  // namespace moebius::simulation
