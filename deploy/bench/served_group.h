// A group of one's own: `moebius serve` as a child, for the demonstration and
// for benchmarks.
#pragma once

#include <sys/types.h>

#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "deploy/client/event_loop.h"
#include "deploy/client/http_client.h"
#include "deploy/launcher/child_process.h"
#include "deploy/launcher/console.h"

namespace moebius {

// ServedGroup
//
// Runs this very program as `moebius serve ARGS --port 0 --admin-port 0`, on
// loopback and without keys.
// Threading: the loop's thread, which is the main thread.
class ServedGroup {
 public:
  // Starts it and waits until it serves. `on_progress` hears a line for each
  // tenth of the weights once loading has taken longer than one wants to wait
  // in silence.
  // Errors: kUnavailable with the end of its output when it ended instead;
  // kDeadlineExceeded; kCancelled.
  static absl::StatusOr<std::unique_ptr<ServedGroup>> Start(
      EventLoop& loop, const std::vector<std::string>& serve_args,
      absl::Duration timeout,
      std::function<void(std::string_view)> on_progress);

  // Ends it at once if Stop() did not.
  ~ServedGroup();
  ServedGroup(const ServedGroup&) = delete;
  ServedGroup& operator=(const ServedGroup&) = delete;

  const Url& api() const { return api_; }
  const Url& admin() const { return admin_; }

  // Drains and waits for its end.
  // Errors: kInternal with the end of its output unless the exit code is 0.
  absl::Status Stop(absl::Duration timeout);

  // After Stop(): what it left behind, a line each: processes, its directory,
  // listening ports, shared memory. Empty: nothing.
  std::vector<std::string> Leftovers() const;

 private:
  explicit ServedGroup(EventLoop& loop) : loop_(loop) {}
  absl::Status Launch(const std::vector<std::string>& serve_args,
                      std::function<void(std::string_view)> on_progress);
  absl::Status ParseReady();
  std::string LastOutput() const;

  struct Process {
    pid_t pid = 0;
    std::string start_time;  // tells it from a later process with its pid
  };
  static std::vector<Process> ChildrenOf(pid_t pid);
  static std::string StartTimeOf(pid_t pid);

  EventLoop& loop_;
  ChildProcess child_;
  // Shared with the readers, which may run after us.
  struct Output {
    std::string text;  // its end, both streams
    LineSplitter err_lines;
    std::string ready;
    int open = 0;  // of stdout, stderr, ready
    bool ready_closed = false;
  };
  std::shared_ptr<Output> output_ = std::make_shared<Output>();
  bool running_ = false;
  std::string directory_;
  Url api_, admin_;
  std::vector<Process> processes_;
  std::vector<std::string> shared_memory_before_;
};

}  // namespace moebius
