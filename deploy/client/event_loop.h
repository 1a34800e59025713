// One thread's event loop, for the command line's clients.
#pragma once

#include <functional>
#include <memory>
#include <string_view>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "common/base/unique_fd.h"

namespace moebius {

// EventLoop
//
// Runs handlers on the thread that calls RunUntil. SIGINT and SIGTERM do not
// end the process while one exists; they end the wait.
// Threading: thread-compatible; one at a time in a process.
class EventLoop {
 public:
  EventLoop();
  ~EventLoop();
  EventLoop(const EventLoop&) = delete;
  EventLoop& operator=(const EventLoop&) = delete;

  // Runs handlers until done() is true. done() is asked after handlers ran.
  // Errors: kDeadlineExceeded; kCancelled when a signal came, now or before.
  absl::Status RunUntil(const std::function<bool()>& done,
                        absl::Duration timeout);

  // As RunUntil, but a signal does not end it: for cleaning up.
  absl::Status FinishUntil(const std::function<bool()>& done,
                           absl::Duration timeout);

  // Runs what is ready and returns: between pieces of work that keep the loop's
  // thread busy. kCancelled when a signal came, now or before.
  absl::Status Poll();

  // Calls `handler` once, no sooner than `delay` from now.
  void After(absl::Duration delay, std::function<void()> handler);

  // Reads `fd` to its end: `handler` gets what comes, and "" at the end.
  void ReadAll(UniqueFd fd, std::function<void(std::string_view)> handler);

  // Of the library behind it, for http_client_beast.cc.
  struct Impl;
  Impl& impl() { return *impl_; }

 private:
  const std::unique_ptr<Impl> impl_;
};

}  // namespace moebius
