#include "coordinator/journal/disk_posix.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <utility>

#include "common/base/cat.h"
#include "common/base/errno_status.h"
#include "common/base/status_macros.h"
#include "common/faults/fault_point.h"

namespace moebius {
namespace {

// Calls `call` until no signal interrupts it.
template <typename Call>
auto Retry(Call call) {
  auto result = call();
  while (result < 0 && errno == EINTR) result = call();
  return result;
}

absl::Status ErrnoOf(const char* what, const std::string& path) {
  return ErrnoStatus(Cat("cannot ", what, " ", path));
}

class PosixFile final : public DiskFile {
 public:
  PosixFile(UniqueFd fd, std::string path)
      : fd_(std::move(fd)), path_(std::move(path)) {}

  absl::Status Append(absl::Span<const char> bytes) override {
    RETURN_IF_ERROR(FaultPoint(FaultId::kJournalWrite));
    while (!bytes.empty()) {
      const ssize_t n =
          Retry([&] { return write(fd_.get(), bytes.data(), bytes.size()); });
      if (n < 0) return ErrnoOf("write", path_);
      if (n == 0) {
        return absl::ResourceExhaustedError(
            Cat("cannot write ", path_, ": no bytes are taken"));
      }
      bytes.remove_prefix(static_cast<size_t>(n));
    }
    return absl::OkStatus();
  }

  // The size of the file counts as its data. Whatever the error, asking again
  // would prove nothing.
  absl::Status Sync() override {
    RETURN_IF_ERROR(FaultPoint(FaultId::kJournalSync));
    if (fdatasync(fd_.get()) != 0) return ErrnoOf("sync", path_);
    return absl::OkStatus();
  }

  bool Present() const override {
    struct stat info;
    return fstat(fd_.get(), &info) != 0 || info.st_nlink > 0;
  }

 private:
  const UniqueFd fd_;
  const std::string path_;
};

// So that a new directory survives a loss of power.
absl::Status SyncParentOf(const std::string& path) {
  const size_t end = path.find_last_not_of('/');
  const size_t slash = path.rfind('/', end);
  const std::string parent = slash == std::string::npos ? "."
                             : slash == 0               ? "/"
                                                        : path.substr(0, slash);
  const UniqueFd fd(Retry([&] {
    return open(parent.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  }));
  if (!fd || fsync(fd.get()) != 0) return ErrnoOf("sync", parent);
  return absl::OkStatus();
}

}  // namespace

PosixDisk::PosixDisk(std::string path, UniqueFd directory)
    : path_(std::move(path)), directory_(std::move(directory)) {}

absl::StatusOr<std::unique_ptr<PosixDisk>> PosixDisk::Open(
    const std::string& path) {
  ASSIGN_OR_RETURN(UniqueFd directory, OpenDirectory(path));
  return std::unique_ptr<PosixDisk>(new PosixDisk(path, std::move(directory)));
}

absl::StatusOr<UniqueFd> PosixDisk::OpenDirectory(const std::string& path) {
  const bool made = mkdir(path.c_str(), 0700) == 0;
  if (!made && errno != EEXIST) return ErrnoOf("make the directory", path);
  // Whoever made it may not have come so far; and may read the parent.
  const absl::Status synced = SyncParentOf(path);
  if (made && !synced.ok()) return synced;
  UniqueFd directory(Retry(
      [&] { return open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC); }));
  struct stat info;
  if (!directory || fstat(directory.get(), &info) != 0) {
    return ErrnoOf("open the directory", path);
  }
  if (info.st_uid != geteuid() || (info.st_mode & 077) != 0) {
    return absl::FailedPreconditionError(
        Cat(path,
            ": must be this user's, and of mode 0700, as it keeps what "
            "clients send"));
  }
  return directory;
}

absl::Status PosixDisk::RestoreDirectory() {
  struct stat here, ours;
  if (stat(path_.c_str(), &here) == 0 && fstat(directory_.get(), &ours) == 0 &&
      here.st_dev == ours.st_dev && here.st_ino == ours.st_ino) {
    return absl::OkStatus();
  }
  ASSIGN_OR_RETURN(directory_, OpenDirectory(path_));
  return locked_ ? Lock() : absl::OkStatus();
}

std::string PosixDisk::Describe(const std::string& name) const {
  return Cat(path_, "/", name);
}

absl::Status PosixDisk::Error(const char* what, const std::string& name) const {
  return ErrnoOf(what, Describe(name));
}

absl::Status PosixDisk::Lock() {
  if (Retry([&] { return flock(directory_.get(), LOCK_EX | LOCK_NB); }) != 0) {
    if (errno != EWOULDBLOCK) return Error("lock", "");
    return absl::FailedPreconditionError(
        Cat(path_, ": another process has this journal open"));
  }
  locked_ = true;
  return absl::OkStatus();
}

absl::StatusOr<std::vector<std::string>> PosixDisk::List() {
  // fdopendir takes the descriptor, and its place in the directory.
  UniqueFd fd(Retry([&] {
    return openat(directory_.get(), ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  }));
  if (!fd) return Error("list", "");
  DIR* entries = fdopendir(fd.get());
  if (entries == nullptr) return Error("list", "");
  fd.release();
  std::vector<std::string> names;
  absl::Status status;
  for (;;) {
    errno = 0;
    const dirent* entry = readdir(entries);
    if (entry == nullptr) {
      if (errno != 0) status = Error("list", "");
      break;
    }
    if (names.size() == kMaxNames) {
      status = absl::ResourceExhaustedError(
          Cat(path_, ": more than ", kMaxNames, " files"));
      break;
    }
    names.emplace_back(entry->d_name);
  }
  closedir(entries);
  if (!status.ok()) return status;
  return names;
}

absl::StatusOr<std::string> PosixDisk::Read(const std::string& name,
                                            uint64_t max_bytes) {
  const UniqueFd fd(Retry([&] {
    return openat(directory_.get(), name.c_str(),
                  O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
  }));
  struct stat info;
  if (!fd || fstat(fd.get(), &info) != 0) return Error("open", name);
  const uint64_t size = static_cast<uint64_t>(info.st_size);
  if (size > max_bytes) {
    return absl::ResourceExhaustedError(Cat(Describe(name), " has ", size,
                                            " bytes; at most ", max_bytes,
                                            " are read"));
  }
  std::string bytes(size, '\0');
  size_t done = 0;
  while (done < bytes.size()) {
    const ssize_t n = Retry([&] {
      return read(fd.get(), bytes.data() + done, bytes.size() - done);
    });
    if (n < 0) return Error("read", name);
    if (n == 0) break;  // it has become shorter
    done += static_cast<size_t>(n);
  }
  bytes.resize(done);
  return bytes;
}

absl::StatusOr<std::unique_ptr<DiskFile>> PosixDisk::Create(
    const std::string& name) {
  RETURN_IF_ERROR(RestoreDirectory());
  UniqueFd fd(Retry([&] {
    return openat(
        directory_.get(), name.c_str(),
        O_WRONLY | O_CREAT | O_TRUNC | O_APPEND | O_CLOEXEC | O_NOFOLLOW, 0600);
  }));
  if (!fd) return Error("make", name);
  return std::make_unique<PosixFile>(std::move(fd), Describe(name));
}

absl::Status PosixDisk::Rename(const std::string& from, const std::string& to) {
  if (renameat(directory_.get(), from.c_str(), directory_.get(), to.c_str()) !=
      0) {
    return Error("rename", from);
  }
  return absl::OkStatus();
}

absl::Status PosixDisk::Remove(const std::string& name) {
  if (unlinkat(directory_.get(), name.c_str(), 0) != 0) {
    return Error("remove", name);
  }
  return absl::OkStatus();
}

absl::Status PosixDisk::SyncNames() {
  if (fsync(directory_.get()) != 0) return Error("sync", "");
  return absl::OkStatus();
}

}  // namespace moebius
