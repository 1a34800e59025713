#include "deploy/bench/bench_program.h"

#include <poll.h>
#include <signal.h>
#include <unistd.h>

#include <array>
#include <cerrno>

#include "common/base/cat.h"
#include "common/base/deadline.h"
#include "common/base/errno_status.h"
#include "common/base/status_macros.h"
#include "deploy/launcher/child_process.h"
#include "deploy/launcher/stop_signals.h"

namespace moebius {
namespace {

constexpr size_t kReadBytes = 4096;

// A child that is ended, if it has not, and reaped.
class RunningProgram {
 public:
  RunningProgram(ChildProcess child, Console& console)
      : child_(std::move(child)), console_(console) {}
  ~RunningProgram() {
    if (reaped_) return;
    SignalChild(child_, SIGKILL).IgnoreError();
    ReapChild(child_);
  }

  absl::Status Run(Deadline deadline, StopSignals& signals) {
    for (;;) {
      std::array<pollfd, 4> polled = {{{child_.pidfd.get(), POLLIN, 0},
                                       {child_.out.get(), POLLIN, 0},
                                       {child_.err.get(), POLLIN, 0},
                                       {signals.fd(), POLLIN, 0}}};
      const int64_t left_ms = absl::ToInt64Milliseconds(deadline.left());
      if (poll(polled.data(), polled.size(),
               static_cast<int>(std::clamp<int64_t>(left_ms, 0, 1000))) < 0 &&
          errno != EINTR) {
        return ErrnoStatus("poll");
      }
      Read(child_.out);
      Read(child_.err);
      while (const auto meaning = signals.Take()) {
        if (*meaning != StopSignals::Meaning::kNothing) {
          return absl::CancelledError("stopped");
        }
      }
      if (polled[0].revents != 0) return End();
      if (deadline.expired()) {
        return absl::DeadlineExceededError("the time is over");
      }
    }
  }

 private:
  void Read(UniqueFd& fd) {
    std::array<char, kReadBytes> bytes;
    while (fd.get() >= 0) {
      const ssize_t size = read(fd.get(), bytes.data(), bytes.size());
      if (size < 0 && errno == EAGAIN) return;
      if (size <= 0) {
        fd.reset();
        return;
      }
      for (std::string& line :
           lines_.Add({bytes.data(), static_cast<size_t>(size)})) {
        Show(std::move(line));
      }
    }
  }
  // The last one may be the error, which is not shown twice.
  void Show(std::string line) {
    if (!last_.empty()) console_.Err(last_);
    last_ = std::move(line);
  }
  absl::Status End() {
    const ExitStatus exit = ReapChild(child_);
    reaped_ = true;
    if (exit.signal != 0) {
      return absl::InternalError(Cat("the benchmark was ended by signal ",
                                     exit.signal, last_.empty() ? "" : ": ",
                                     last_));
    }
    if (exit.exit_code != 0) return absl::InternalError(last_);
    if (!last_.empty()) console_.Err(last_);
    return absl::OkStatus();
  }

  ChildProcess child_;
  Console& console_;
  LineSplitter lines_;
  std::string last_;
  bool reaped_ = false;
};

}  // namespace

absl::Status RunBenchProgram(std::vector<std::string> argv,
                             absl::Duration timeout, Console& console) {
  ASSIGN_OR_RETURN(argv.front(), FindProgram(argv.front()));
  StopSignals signals;
  ASSIGN_OR_RETURN(ChildProcess child, StartChild(argv));
  RunningProgram program(std::move(child), console);
  return program.Run(Deadline::After(timeout), signals);
}

}  // namespace moebius
