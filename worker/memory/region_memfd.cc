#include <fcntl.h>
#include <numa.h>
#include <numaif.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include <cerrno>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/base/errno_status.h"
#include "common/base/status_macros.h"
#include "worker/memory/region.h"
#include "worker/memory/region_maker.h"

namespace moebius {
namespace {

// Since Linux 5.14; the C library's headers may be older.
#ifndef MADV_POPULATE_READ
#define MADV_POPULATE_READ 22
#endif
#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif

constexpr int kSizeSeals = F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL;

// Whether `fd` is memory of exactly that size, which will keep it.
absl::Status CheckMemory(int fd, int64_t size_bytes) {
  struct stat info {};
  if (::fstat(fd, &info) != 0) return ErrnoStatus("fstat");
  if (info.st_size != size_bytes) {
    return absl::InvalidArgumentError(absl::StrCat(
        "memory of ", info.st_size, " bytes where ", size_bytes, " belong"));
  }
  const int seals = ::fcntl(fd, F_GET_SEALS);
  if (seals < 0 || (seals & F_SEAL_SHRINK) == 0) {
    return absl::InvalidArgumentError("not memory that keeps its size");
  }
  return absl::OkStatus();
}

int ProtectionOf(Region::Access access) {
  return access == Region::Access::kReadWrite ? PROT_READ | PROT_WRITE
                                              : PROT_READ;
}

class MemfdRegion final : public Region {
 public:
  MemfdRegion(UniqueFd fd, std::byte* base, int64_t size_bytes, Access access)
      : Region(std::move(fd), base, size_bytes, access) {}
  ~MemfdRegion() override { ::munmap(base_, size_bytes_); }

  absl::Status Replace(UniqueFd fd) override {
    RETURN_IF_ERROR(CheckMemory(fd.get(), size_bytes_));
    if (::mmap(base_, size_bytes_, ProtectionOf(access_),
               MAP_SHARED | MAP_FIXED, fd.get(), 0) == MAP_FAILED) {
      return ErrnoStatus("mmap of a region");
    }
    fd_ = std::move(fd);
    return absl::OkStatus();
  }
};

// Maps at a multiple of kRegionAlignment: takes a range larger by that, puts
// the mapping into the middle and gives the ends back.
absl::StatusOr<std::byte*> MapAligned(int fd, int64_t size_bytes,
                                      int protection) {
  const int64_t reserved = size_bytes + kRegionAlignment;
  void* const range =
      ::mmap(nullptr, reserved, PROT_NONE,
             MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (range == MAP_FAILED) return ErrnoStatus("mmap of an address range");
  auto* const first = static_cast<std::byte*>(range);
  const int64_t excess = static_cast<int64_t>(
      reinterpret_cast<uintptr_t>(first) % kRegionAlignment);
  const int64_t head = excess == 0 ? 0 : kRegionAlignment - excess;
  std::byte* const base = first + head;
  if (::mmap(base, size_bytes, protection, MAP_SHARED | MAP_FIXED, fd, 0) ==
      MAP_FAILED) {
    const absl::Status failed = ErrnoStatus("mmap of a region");
    ::munmap(range, reserved);
    return failed;
  }
  if (head > 0) ::munmap(first, head);
  ::munmap(base + size_bytes, kRegionAlignment - head);
  return base;
}

absl::Status BindToNode(std::byte* base, int64_t size_bytes, int node) {
  if (node < 0 || numa_available() < 0) return absl::OkStatus();
  const int num_nodes = numa_num_configured_nodes();
  if (num_nodes <= 1) return absl::OkStatus();
  if (node >= num_nodes) {
    return absl::InvalidArgumentError(
        absl::StrCat("NUMA node ", node, " of ", num_nodes));
  }
  bitmask* const nodes = numa_allocate_nodemask();
  numa_bitmask_setbit(nodes, node);
  const long bound =
      ::mbind(base, size_bytes, MPOL_BIND, nodes->maskp, nodes->size + 1, 0);
  const absl::Status status =
      bound == 0 ? absl::OkStatus() : ErrnoStatus("mbind of a region");
  numa_free_nodemask(nodes);
  return status;
}

absl::Status Prefault(std::byte* base, int64_t size_bytes,
                      Region::Access access) {
  const int advice = access == Region::Access::kReadWrite ? MADV_POPULATE_WRITE
                                                          : MADV_POPULATE_READ;
  while (::madvise(base, size_bytes, advice) != 0) {
    if (errno == EINTR || errno == EAGAIN) continue;
    // A page that cannot be had is reported as the signal it would have been.
    if (errno == EFAULT || errno == EHWPOISON) errno = ENOMEM;
    return ErrnoStatus(absl::StrCat("allocating ", size_bytes, " bytes"));
  }
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<Region>> Map(UniqueFd fd, int64_t size_bytes,
                                            Region::Access access,
                                            const RegionOptions& options) {
  ASSIGN_OR_RETURN(std::byte* const base,
                   MapAligned(fd.get(), size_bytes, ProtectionOf(access)));
  auto region =
      std::make_unique<MemfdRegion>(std::move(fd), base, size_bytes, access);
  if (options.huge_pages) {
    // A hint: kernels without huge pages for shared memory refuse it.
    ::madvise(base, size_bytes, MADV_HUGEPAGE);
  }
  if (access == Region::Access::kReadWrite) {
    RETURN_IF_ERROR(BindToNode(base, size_bytes, options.numa_node));
  }
  if (options.prefault) RETURN_IF_ERROR(Prefault(base, size_bytes, access));
  return region;
}

}  // namespace

absl::StatusOr<std::unique_ptr<Region>> CreateMemfdRegion(
    const std::string& name, int64_t size_bytes, const RegionOptions& options) {
  constexpr int64_t kLargest = int64_t{1} << 46;  // of an address space
  if (size_bytes < 0 || size_bytes > kLargest) {
    return absl::InvalidArgumentError(
        absl::StrCat("a region of ", size_bytes, " bytes"));
  }
  const int64_t rounded = RoundUpToRegion(size_bytes);
  UniqueFd fd(::memfd_create(name.c_str(), MFD_CLOEXEC | MFD_ALLOW_SEALING));
  if (!fd) return ErrnoStatus("memfd_create");
  if (::ftruncate(fd.get(), rounded) != 0) return ErrnoStatus("ftruncate");
  if (::fcntl(fd.get(), F_ADD_SEALS, kSizeSeals) != 0) {
    return ErrnoStatus("sealing a region");
  }
  return Map(std::move(fd), rounded, Region::Access::kReadWrite, options);
}

absl::StatusOr<std::unique_ptr<Region>> AdoptMemfdRegion(
    UniqueFd fd, int64_t size_bytes, Region::Access access,
    const RegionOptions& options) {
  const int64_t rounded = RoundUpToRegion(size_bytes);
  RETURN_IF_ERROR(CheckMemory(fd.get(), rounded));
  return Map(std::move(fd), rounded, access, options);
}

class Memfds final : public RegionMaker {
 public:
  RegionClass region_class() const override { return RegionClass::kMemfd; }
  absl::StatusOr<std::unique_ptr<Region>> Create(
      const std::string& name, int64_t size_bytes,
      const RegionOptions& options) const override {
    return CreateMemfdRegion(name, size_bytes, options);
  }
  absl::StatusOr<std::unique_ptr<Region>> Map(
      UniqueFd fd, int64_t size_bytes, Region::Access access,
      const RegionOptions& options) const override {
    return AdoptMemfdRegion(std::move(fd), size_bytes, access, options);
  }
  absl::StatusOr<UniqueFd> ForPeer(const Region& region) const override {
    return ReopenReadOnly(region.descriptor());
  }
};

const RegionMaker& MemfdMaker() {
  static const Memfds* const maker = new Memfds;
  return *maker;
}

absl::StatusOr<UniqueFd> ReopenReadOnly(int fd) {
  UniqueFd read_only(
      ::open(absl::StrCat("/proc/self/fd/", fd).c_str(), O_RDONLY | O_CLOEXEC));
  if (!read_only) return ErrnoStatus("opening a region anew");
  return read_only;
}

absl::StatusOr<UniqueFd> Duplicate(int fd) {
  UniqueFd copy(::fcntl(fd, F_DUPFD_CLOEXEC, 0));
  if (!copy) return ErrnoStatus("duplicating a descriptor");
  return copy;
}

}  // namespace moebius
