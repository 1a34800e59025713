// How an engine tells that something may be collected.
#pragma once

#include <sys/eventfd.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>
#include <utility>

#include "absl/status/statusor.h"
#include "common/base/unique_fd.h"

namespace moebius {

// Readable from Ring() to Clear(). Threading: thread-safe.
class Completion {
 public:
  // An error: the kernel has no descriptor for us.
  static absl::StatusOr<Completion> Create() {
    UniqueFd fd(::eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC));
    if (!fd) return absl::ErrnoToStatus(errno, "eventfd");
    return Completion(std::move(fd));
  }
  void Ring() const {
    const uint64_t one = 1;
    [[maybe_unused]] const ssize_t n = ::write(fd_.get(), &one, sizeof(one));
  }
  void Clear() const {
    uint64_t rings;
    [[maybe_unused]] const ssize_t n = ::read(fd_.get(), &rings, sizeof(rings));
  }
  int fd() const { return fd_.get(); }

 private:
  explicit Completion(UniqueFd fd) : fd_(std::move(fd)) {}
  UniqueFd fd_;
};

}  // namespace moebius
