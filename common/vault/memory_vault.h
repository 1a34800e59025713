// What keeps descriptors of memory, as a worker sees it.
#pragma once

#include <cstdint>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "common/base/ids.h"
#include "common/base/unique_fd.h"
#include "common/vault/vault_protocol.h"

namespace moebius {

// A descriptor of a memory region and the size of that region.
struct RegionDescriptor {
  UniqueFd fd;
  uint64_t size_bytes = 0;
  RegionClass region_class = RegionClass::kMemfd;
};

// Errors of every call: kUnavailable when the vault is gone or has refused us,
// kDeadlineExceeded, kInternal when its answer makes no sense.
class MemoryVault {
 public:
  virtual ~MemoryVault() = default;

  // Gives the vault a duplicate of the descriptor of our own region; returns
  // when it is kept. kFailedPrecondition with the vault's reason when it is
  // not: there is one already, or it cannot be kept safely.
  virtual absl::Status Deposit(RegionKind kind, RegionClass region_class,
                               int fd, uint64_t size_bytes,
                               absl::Duration timeout) = 0;

  // Our own region as a predecessor of our rank deposited it, read-write.
  // kNotFound when there is none.
  virtual absl::StatusOr<RegionDescriptor> Withdraw(RegionKind kind,
                                                    absl::Duration timeout) = 0;

  // A region of `rank`, open read-only (kSignals read-write; of a device as it
  // is: the mapping makes it read-only); waits until it is deposited.
  // kFailedPrecondition with the vault's reason when it is refused.
  virtual absl::StatusOr<RegionDescriptor> Borrow(RegionKind kind, Rank rank,
                                                  absl::Duration timeout) = 0;
};

}  // namespace moebius
