// How a device makes the memory that a worker's regions are, and maps a peer's.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "common/base/unique_fd.h"
#include "common/vault/vault_protocol.h"
#include "worker/memory/region.h"

namespace moebius {

// RegionMaker
//
// One class of memory. WorkerMemory has its signals from MemfdMaker() always,
// since the host's words in them outlive devices, and all else from the maker
// of its device.
// Sizes are rounded up by RoundUpToRegion; a descriptor belongs to a region of
// that size, as far as its class can tell.
// Threading: thread-safe; immutable.
class RegionMaker {
 public:
  virtual ~RegionMaker() = default;

  // What the vault is told that descriptors of its regions are.
  virtual RegionClass region_class() const = 0;

  // A new, zeroed region. kInvalidArgument for a size or node that cannot be,
  // kResourceExhausted when the memory is not there.
  virtual absl::StatusOr<std::unique_ptr<Region>> Create(
      const std::string& name, int64_t size_bytes,
      const RegionOptions& options) const = 0;

  // The memory behind `fd`: that of our predecessor, to be written
  // (kReadWrite), or a peer's. kInvalidArgument when it is not what it must be.
  virtual absl::StatusOr<std::unique_ptr<Region>> Map(
      UniqueFd fd, int64_t size_bytes, Region::Access access,
      const RegionOptions& options) const = 0;

  // A descriptor of a region as the vault hands it to peers.
  virtual absl::StatusOr<UniqueFd> ForPeer(const Region& region) const = 0;
};

// Host memory.
const RegionMaker& MemfdMaker();

}  // namespace moebius
