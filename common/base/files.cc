#include "common/base/files.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>

#include "common/base/cat.h"
#include "common/base/errno_status.h"
#include "common/base/status_macros.h"
#include "common/base/unique_fd.h"

namespace moebius {
namespace {

constexpr size_t kFirstRead = size_t{1} << 14;

absl::Status TooLarge(std::string_view name, std::string_view size,
                      size_t max_bytes) {
  return absl::InvalidArgumentError(Cat(
      name, ": has ", size, " bytes; allowed: at most ", max_bytes, " bytes"));
}

absl::Status CannotOpen(const std::string& path) {
  switch (errno) {
    case ENOENT:
    case ENOTDIR:
      return absl::NotFoundError(Cat(path, ": no such file"));
    case EACCES:
    case ELOOP:
    case ENAMETOOLONG:
      return absl::InvalidArgumentError(
          ErrnoStatus(Cat(path, ": cannot be opened")).message());
    default:
      return ErrnoStatus(Cat(path, ": cannot be opened"));
  }
}

}  // namespace

absl::StatusOr<std::string> ReadFile(const std::string& path,
                                     size_t max_bytes) {
  // Not blocking: it may be a pipe.
  const UniqueFd file(
      open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY));
  if (!file) return CannotOpen(path);
  struct stat info {};
  if (fstat(file.get(), &info) != 0) return ErrnoStatus(path);
  if (S_ISDIR(info.st_mode)) {
    return absl::InvalidArgumentError(Cat(path, ": is a directory"));
  }
  if (!S_ISREG(info.st_mode)) {
    return absl::InvalidArgumentError(Cat(path, ": is no regular file"));
  }
  if (static_cast<size_t>(info.st_size) > max_bytes) {
    return TooLarge(path, Cat(info.st_size), max_bytes);
  }
  return ReadDescriptor(file.get(), path, max_bytes);
}

absl::StatusOr<std::string> ReadDescriptor(int fd, std::string_view name,
                                           size_t max_bytes) {
  std::string text;
  size_t done = 0;
  while (true) {
    if (done == text.size()) {
      if (done > max_bytes) {
        return TooLarge(name, Cat("more than ", max_bytes), max_bytes);
      }
      // One more than allowed, to see that it is too large.
      text.resize(std::min(std::max(kFirstRead, 2 * done), max_bytes + 1));
    }
    const ssize_t n = read(fd, text.data() + done, text.size() - done);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return ErrnoStatus(Cat(name, ": cannot be read"));
    if (n == 0) break;
    done += static_cast<size_t>(n);
  }
  text.resize(done);
  return text;
}

}  // namespace moebius
