#include "deploy/launcher/vault_checks.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "absl/strings/str_cat.h"
#include "common/base/errno_status.h"
#include "common/base/status_macros.h"
#include "common/base/unique_fd.h"

namespace moebius {
namespace {

absl::Status CheckMemfd(int fd, uint64_t size_bytes) {
  struct stat info {};
  if (::fstat(fd, &info) != 0) return ErrnoStatus("fstat");
  const int flags = ::fcntl(fd, F_GETFL);
  const int seals = S_ISREG(info.st_mode) ? ::fcntl(fd, F_GET_SEALS) : -1;
  if (seals < 0) return absl::InvalidArgumentError("not a memfd");
  if ((flags & O_ACCMODE) != O_RDWR) {
    return absl::InvalidArgumentError("not open for reading and writing");
  }
  constexpr int kSealed = F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL;
  if (seals != kSealed) {
    return absl::InvalidArgumentError(
        "its seals are not those against shrinking, growing and sealing");
  }
  if (size_bytes == 0 || static_cast<uint64_t>(info.st_size) != size_bytes) {
    return absl::InvalidArgumentError(
        absl::StrCat("it has ", info.st_size, " bytes, not ", size_bytes));
  }
  return absl::OkStatus();
}

absl::Status CheckCharacterDevice(int fd) {
  struct stat info {};
  if (::fstat(fd, &info) != 0) return ErrnoStatus("fstat");
  return S_ISCHR(info.st_mode)
             ? absl::OkStatus()
             : absl::InvalidArgumentError("not a character device");
}

// Of memory of a device, however it is shown.
absl::Status CheckOrder(const KeptRegions& kept, RegionKind kind,
                        uint64_t size_bytes) {
  if (kind == RegionKind::kSignals) {
    return absl::InvalidArgumentError("signals are host memory");
  }
  if (size_bytes == 0) return absl::InvalidArgumentError("it has 0 bytes");
  for (size_t i = static_cast<size_t>(kind) + 1; i < kept.size(); ++i) {
    if (kept[i].fd) {
      return absl::FailedPreconditionError(
          "regions of a device come in the order of their kinds");
    }
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status CheckVaultDirectory(const std::string& directory) {
  UniqueFd fd(
      ::open(directory.c_str(), O_PATH | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC));
  if (!fd) return ErrnoStatus(absl::StrCat("vault directory ", directory));
  struct stat info {};
  if (::fstat(fd.get(), &info) != 0) return ErrnoStatus("fstat");
  if (info.st_uid != ::geteuid() || (info.st_mode & 07777) != 0700) {
    return absl::PermissionDeniedError(absl::StrCat(
        "vault directory ", directory, " has mode 0",
        absl::Hex(info.st_mode >> 6 & 7), absl::Hex(info.st_mode >> 3 & 7),
        absl::Hex(info.st_mode & 7), " and owner ", info.st_uid,
        "; must be 0700 and owner ", ::geteuid()));
  }
  return absl::OkStatus();
}

absl::Status CheckVaultMessage(const VaultMessage& message,
                               bool has_descriptor) {
  if (message.ok != 0 || message.answers != 0) {
    return MalformedMessage("an answer");
  }
  if (static_cast<int>(message.region) >= kNumRegionKinds) {
    return MalformedMessage("no such region");
  }
  if (static_cast<int>(message.region_class) >= kNumRegionClasses) {
    return MalformedMessage("no such class of regions");
  }
  if (message.rank < -1 || message.rank >= kMaxRanks) {
    return MalformedMessage("no such rank");
  }
  if (has_descriptor != (message.type == VaultMessageType::kDeposit)) {
    return MalformedMessage("a descriptor is missing, or was not asked for");
  }
  return absl::OkStatus();
}

absl::Status MalformedMessage(absl::string_view what) {
  return absl::InvalidArgumentError(absl::StrCat("malformed message: ", what));
}

absl::Status AdmitRegion(const KeptRegions& kept, RegionKind kind,
                         RegionClass region_class, int fd,
                         uint64_t size_bytes) {
  if (kept[static_cast<size_t>(kind)].fd) {
    return absl::AlreadyExistsError("there is one already");
  }
  if (region_class == RegionClass::kDevice) {
    RETURN_IF_ERROR(CheckCharacterDevice(fd));
    return CheckOrder(kept, kind, size_bytes);
  }
  if (region_class == RegionClass::kHandle) {
    RETURN_IF_ERROR(CheckMemfd(fd, kMemoryHandleBytes));
    RETURN_IF_ERROR(CheckOrder(kept, kind, size_bytes));
  } else {
    RETURN_IF_ERROR(CheckMemfd(fd, size_bytes));
  }
  // Peers are to open it for reading only.
  return ::fchmod(fd, 0400) == 0 ? absl::OkStatus() : ErrnoStatus("fchmod");
}

void DropHandles(KeptRegions& kept) {
  for (KeptRegion& one : kept) {
    if (one.region_class == RegionClass::kHandle) one = KeptRegion{};
  }
}

absl::StatusOr<int> DescriptorForPeer(const KeptRegion& kept, RegionKind kind,
                                      UniqueFd& opened) {
  if (kind == RegionKind::kSignals ||
      kept.region_class == RegionClass::kDevice) {
    return kept.fd.get();
  }
  opened.reset(::open(absl::StrCat("/proc/self/fd/", kept.fd.get()).c_str(),
                      O_RDONLY | O_CLOEXEC));
  if (!opened) return ErrnoStatus("cannot be opened anew");
  return opened.get();
}

}  // namespace moebius
