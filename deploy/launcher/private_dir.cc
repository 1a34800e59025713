#include "deploy/launcher/private_dir.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/file.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <filesystem>
#include <string_view>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_format.h"
#include "common/base/cat.h"
#include "common/base/errno_status.h"
#include "common/base/status_macros.h"

namespace moebius {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view kPrefix = "moebius-";
constexpr char kLockName[] = "lock";
constexpr std::string_view kAdvice =
    "; `moebius serve --state-dir DIR` takes another place";
// Room for "/" and the longest socket name in the directory.
constexpr size_t kMaxSocketNameBytes = 32;
constexpr size_t kNameBytes = 32;  // moebius-<pid>-<random>

// A directory whose launcher is between making and locking it is this young.
constexpr int kYoungSeconds = 60;

bool FitsSockets(const std::string& base) {
  return base.size() + 1 + kNameBytes + kMaxSocketNameBytes <
         sizeof(sockaddr_un::sun_path);
}

// The pid in `moebius-<pid>-<random>`, or 0.
pid_t PidInName(std::string_view name) {
  if (!name.starts_with(kPrefix)) return 0;
  name.remove_prefix(kPrefix.size());
  pid_t pid = 0;
  if (!absl::SimpleAtoi(AbslView(name.substr(0, name.find('-'))), &pid)) {
    return 0;
  }
  return pid > 0 ? pid : 0;
}

// Whether nobody holds the lock of the directory. One without a lock counts as
// unlocked: its launcher died before it got so far, or is about to make it.
bool IsUnlocked(const fs::path& dir) {
  UniqueFd lock(
      open((dir / kLockName).c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW));
  if (!lock) return errno == ENOENT;
  return flock(lock.get(), LOCK_EX | LOCK_NB) == 0;
}

bool IsStale(const fs::path& dir) {
  const pid_t pid = PidInName(dir.filename().string());
  if (pid == 0) return false;
  struct stat info;
  if (lstat(dir.c_str(), &info) != 0) return false;
  if (!S_ISDIR(info.st_mode) || info.st_uid != geteuid()) return false;
  if (!IsUnlocked(dir)) return false;
  const bool pid_is_gone = kill(pid, 0) != 0 && errno == ESRCH;
  return pid_is_gone || info.st_mtime + kYoungSeconds < time(nullptr);
}

absl::StatusOr<std::string> RandomName() {
  uint64_t bits = 0;
  if (getrandom(&bits, sizeof bits, 0) != sizeof bits) {
    return ErrnoStatus("getrandom");
  }
  return Cat(kPrefix, getpid(), "-",
             absl::StrFormat("%010x", bits & 0xffffffffff));
}

}  // namespace

PrivateDir::PrivateDir(std::string path, UniqueFd lock)
    : path_(std::move(path)), lock_(std::move(lock)) {}

PrivateDir::PrivateDir(PrivateDir&& other) noexcept
    : path_(std::exchange(other.path_, "")),
      lock_(std::move(other.lock_)),
      files_(std::move(other.files_)) {}

PrivateDir::~PrivateDir() {
  if (path_.empty()) return;
  std::error_code ignored;  // nothing to be done about it at this point
  fs::remove_all(path_, ignored);
}

std::string PrivateDir::DefaultBase() {
  for (const char* name : {"XDG_RUNTIME_DIR", "TMPDIR"}) {
    const char* base = std::getenv(name);
    if (base != nullptr && base[0] == '/' && FitsSockets(base) &&
        access(base, W_OK | X_OK) == 0) {
      return base;
    }
  }
  return "/tmp";
}

absl::StatusOr<PrivateDir> PrivateDir::Create(const std::string& base) {
  if (!FitsSockets(base)) {
    return absl::InvalidArgumentError(Cat(
        base, ": too long for the sockets below it; allowed are ",
        sizeof(sockaddr_un::sun_path) - kNameBytes - kMaxSocketNameBytes - 2,
        " bytes", kAdvice));
  }
  RemoveStaleDirs(base);
  ASSIGN_OR_RETURN(const std::string name, RandomName());
  const std::string path = Cat(base, "/", name);
  if (mkdir(path.c_str(), 0700) != 0) {
    const int error = errno;
    return absl::ErrnoToStatus(error, Cat("cannot make the directory ", path,
                                          ": ", strerror(error), kAdvice));
  }
  PrivateDir dir(path, UniqueFd());  // removes it on error
  RETURN_IF_ERROR(dir.TakeLock());
  return dir;
}

absl::Status PrivateDir::TakeLock() {
  UniqueFd lock(open(Cat(path_, "/", kLockName).c_str(),
                     O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600));
  if (!lock || flock(lock.get(), LOCK_EX | LOCK_NB) != 0) {
    return ErrnoStatus(Cat("cannot lock ", path_));
  }
  lock_ = std::move(lock);
  return absl::OkStatus();
}

absl::StatusOr<std::vector<std::string>> PrivateDir::Restore() {
  std::vector<std::string> restored;
  struct stat info;
  if (lstat(path_.c_str(), &info) != 0) {
    if (mkdir(path_.c_str(), 0700) != 0) {
      const int error = errno;
      return absl::ErrnoToStatus(
          error,
          Cat(path_, " was removed by somebody and cannot be made again: ",
              strerror(error), kAdvice));
    }
    restored.push_back(path_);
  }
  if (lstat(Cat(path_, "/", kLockName).c_str(), &info) != 0) {
    RETURN_IF_ERROR(TakeLock());
    restored.push_back(kLockName);
  }
  for (const auto& [name, text] : files_) {
    if (lstat(Cat(path_, "/", name).c_str(), &info) == 0) continue;
    RETURN_IF_ERROR(Put(name, text));
    restored.push_back(name);
  }
  return restored;
}

absl::Status PrivateDir::WriteFile(const std::string& name,
                                   const std::string& text) {
  RETURN_IF_ERROR(Put(name, text));
  files_[name] = text;
  return absl::OkStatus();
}

absl::Status PrivateDir::Put(const std::string& name,
                             const std::string& text) const {
  const std::string path = Cat(path_, "/", name);
  UniqueFd file(open(path.c_str(),
                     O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW,
                     0600));
  if (!file) return ErrnoStatus(Cat("cannot write ", path));
  size_t done = 0;
  while (done < text.size()) {
    const ssize_t n = write(file.get(), text.data() + done, text.size() - done);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) return ErrnoStatus(Cat("cannot write ", path));
    done += static_cast<size_t>(n);
  }
  return absl::OkStatus();
}

int RemoveStaleDirs(const std::string& base) {
  int removed = 0;
  int seen = 0;
  std::error_code error;
  for (fs::directory_iterator it(base, error), end;
       !error && it != end && seen < kMaxStaleEntries;
       it.increment(error), ++seen) {
    if (!IsStale(it->path())) continue;
    std::error_code ignored;  // another launcher may be at it too
    fs::remove_all(it->path(), ignored);
    if (!ignored) ++removed;
  }
  return removed;
}

}  // namespace moebius
