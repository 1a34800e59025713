// What the launcher is signalled.
#pragma once

#include <signal.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include <optional>

#include "common/base/check.h"
#include "common/base/unique_fd.h"

namespace moebius {

// Signals as a descriptor; blocked as long as it lives. SIGUSR1 and SIGUSR2 are
// taken and mean nothing: programs that rotate logs send them.
class StopSignals {
 public:
  StopSignals() {
    sigset_t set;
    sigemptyset(&set);
    for (int signal : {SIGTERM, SIGINT, SIGHUP, SIGUSR1, SIGUSR2}) {
      sigaddset(&set, signal);
    }
    pthread_sigmask(SIG_BLOCK, &set, &old_);
    fd_.reset(signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK));
    CHECK(fd_.get() >= 0);
  }
  ~StopSignals() {
    // What arrived while we ended must not end the process now.
    while (Take().has_value()) {
    }
    pthread_sigmask(SIG_SETMASK, &old_, nullptr);
  }
  int fd() const { return fd_.get(); }
  // What one that has arrived means.
  enum class Meaning {
    kNothing,
    kStop,    // a second one: at once
    kHangUp,  // of the terminal, not a process's SIGHUP: a stop, but only once
  };
  // The next one that has arrived, if any.
  std::optional<Meaning> Take() {
    signalfd_siginfo info;
    if (read(fd_.get(), &info, sizeof info) != sizeof info) return std::nullopt;
    switch (info.ssi_signo) {
      case SIGTERM:
      case SIGINT:
        return Meaning::kStop;
      case SIGHUP:
        return info.ssi_code == SI_KERNEL ? Meaning::kHangUp
                                          : Meaning::kNothing;
      default:
        return Meaning::kNothing;
    }
  }

 private:
  sigset_t old_;
  UniqueFd fd_;
};

}  // namespace moebius
