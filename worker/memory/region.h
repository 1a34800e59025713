// A block of a worker's memory that other processes can map.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/base/unique_fd.h"

namespace moebius {

// Regions start at multiples of this and their sizes are rounded up to it, so
// that huge pages fit.
inline constexpr int64_t kRegionAlignment = int64_t{2} << 20;

constexpr int64_t RoundUpToRegion(int64_t bytes) {
  const int64_t whole = bytes < 1 ? 1 : bytes;
  return (whole + kRegionAlignment - 1) / kRegionAlignment * kRegionAlignment;
}

struct RegionOptions {
  // Asks for transparent huge pages; the system decides whether memfds get
  // them (/sys/kernel/mm/transparent_hugepage/shmem_enabled).
  bool huge_pages = true;
  // Allocates every page at once: a system short of memory is an error then,
  // not a SIGBUS later. For mappings of others' memory: enters its pages.
  bool prefault = false;
  // Node that the pages are bound to, -1: wherever they are first touched.
  // Without effect on a machine of one node.
  int numa_node = -1;
};

// Region
//
// One allocation at a fixed address as long as the process runs: a memfd on
// CPU, an exported allocation of the driver on a GPU (region_cuda.h). Its bytes
// are zero when new.
//
// Owns: the mapping and a descriptor. The bytes live as long as anybody holds
// a descriptor or a mapping.
// Size: fixed at creation (a memfd's by seals), so nobody can shrink the bytes
// under another's mapping.
// Threading: immutable but for Replace; what is in the bytes is their users'
// business.
class Region {
 public:
  enum class Access { kReadOnly, kReadWrite };

  virtual ~Region() = default;
  Region(const Region&) = delete;
  Region& operator=(const Region&) = delete;

  const std::byte* base() const { return base_; }
  // nullptr when mapped read-only: a write through such a mapping faults.
  std::byte* mutable_base() const {
    return access_ == Access::kReadWrite ? base_ : nullptr;
  }
  // A multiple of kRegionAlignment.
  int64_t size_bytes() const { return size_bytes_; }
  Access access() const { return access_; }
  // For the vault; remains ours.
  int descriptor() const { return fd_.get(); }

  // Maps other memory of the same size in place of ours, at the same address.
  // On error the old one stays, if `fd` is not what it must be, or else the
  // address is not to be used any more.
  virtual absl::Status Replace(UniqueFd fd) = 0;

 protected:
  Region(UniqueFd fd, std::byte* base, int64_t size_bytes, Access access)
      : fd_(std::move(fd)),
        base_(base),
        size_bytes_(size_bytes),
        access_(access) {}

  UniqueFd fd_;
  std::byte* const base_;
  const int64_t size_bytes_;
  const Access access_;
};

// A new region of at least `size_bytes`; `name` shows in /proc/PID/maps.
// kInvalidArgument for a negative size or an unknown node, kResourceExhausted
// when the memory is not there.
absl::StatusOr<std::unique_ptr<Region>> CreateMemfdRegion(
    const std::string& name, int64_t size_bytes, const RegionOptions& options);

// Maps the memory behind `fd`: a peer's (kReadOnly; kReadWrite for signals) or,
// for a successor, that of our predecessor (kReadWrite). `size_bytes` as at
// creation. kInvalidArgument unless the descriptor is memory of exactly the
// size such a region has; its seals keep it so.
absl::StatusOr<std::unique_ptr<Region>> AdoptMemfdRegion(
    UniqueFd fd, int64_t size_bytes, Region::Access access,
    const RegionOptions& options);

// A descriptor of the same memory that can only be read, as the vault hands to
// peers.
absl::StatusOr<UniqueFd> ReopenReadOnly(int fd);

// Another descriptor of the same kind.
absl::StatusOr<UniqueFd> Duplicate(int fd);

}  // namespace moebius
