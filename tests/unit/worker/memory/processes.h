// What tests of several processes share: children, a private directory, and
// the count of open descriptors.
#pragma once

#include <dirent.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <filesystem>
#include <functional>
#include <string>
#include <utility>

#include "common/base/unique_fd.h"
#include "gtest/gtest.h"

namespace moebius {

// A forked copy of the test. Runs `body` and ends with its result, or with 99
// when an expectation failed in it. Killed and reaped when destroyed.
class Child {
 public:
  explicit Child(const std::function<int()>& body) {
    std::fflush(nullptr);
    const pid_t parent = ::getpid();
    pid_ = ::fork();
    if (pid_ != 0) return;
    ::prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (::getppid() != parent) ::_exit(98);
    const int result = body();
    std::fflush(nullptr);
    ::_exit(testing::Test::HasFailure() ? 99 : result);
  }
  Child(Child&& other) noexcept : pid_(std::exchange(other.pid_, -1)) {}
  Child& operator=(Child&&) = delete;
  ~Child() {
    if (pid_ > 0) Kill();
  }

  pid_t pid() const { return pid_; }

  // Exit code, or minus the number of the signal that ended it.
  int Join() {
    int status = 0;
    EXPECT_EQ(::waitpid(pid_, &status, 0), pid_);
    pid_ = -1;
    return WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
  }

  // SIGKILL, reaped on return.
  void Kill() {
    ::kill(pid_, SIGKILL);
    Join();
  }

 private:
  pid_t pid_ = -1;
};

// One process tells another that something has happened: the end of a pipe.
// Everyone forked meanwhile holds both ends, so the death of the one that was
// to tell is not seen: a wait has a limit.
class Event {
 public:
  Event() {
    int fds[2];
    EXPECT_EQ(::pipe(fds), 0);
    read_.reset(fds[0]);
    write_.reset(fds[1]);
  }
  void Set() { EXPECT_EQ(::write(write_.get(), "x", 1), 1); }
  // True when set, once for each Set; false after a minute.
  bool Wait() {
    pollfd polled = {read_.get(), POLLIN, 0};
    char byte = 0;
    return ::poll(&polled, 1, kWaitMs) == 1 &&
           ::read(read_.get(), &byte, 1) == 1;
  }

 private:
  static constexpr int kWaitMs = 60'000;

  UniqueFd read_;
  UniqueFd write_;
};

// A new directory of mode 0700, removed with its contents.
class PrivateDirectory {
 public:
  PrivateDirectory() {
    char path[] = "/tmp/moebius-test-XXXXXX";
    EXPECT_NE(::mkdtemp(path), nullptr);
    path_ = path;
  }
  ~PrivateDirectory() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

// Open descriptors of this process.
inline int CountDescriptors() {
  int count = 0;
  DIR* const directory = ::opendir("/proc/self/fd");
  while (::readdir(directory) != nullptr) ++count;
  ::closedir(directory);
  return count - 3;  // ".", ".." and the one that reads
}

}  // namespace moebius
