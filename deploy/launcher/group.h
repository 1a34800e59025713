// A group of processes on this host: the launcher proper. Starts workers and
// coordinator, holds the workers' memory (vault.h), shows what they say, does
// what supervision.h decides, and leaves nothing behind.
#pragma once

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/config/config.h"
#include "deploy/launcher/console.h"

namespace moebius {

// What progress on the console begins with, while workers load.
inline constexpr char kLoadingWeights[] = "loading weights";

struct GroupOptions {
  Config config;  // effective: the model path is absolute
  // What coordinates the group: a program beside ours, and further arguments.
  std::string coordinator_program = "moebius-coordinator";
  std::vector<std::string> coordinator_args;
  // The coordinator has a task with an end (a benchmark) and no listeners.
  bool one_shot = false;
  // Says where the group listens, and how to try it.
  bool banner = true;
  // Where to write one line of JSON once the group serves, or -1:
  // {"pid":..,"directory":"..","host":"..","port":..,"admin_port":..}
  int ready_fd = -1;
  // Where the private directory is made; "": PrivateDir::DefaultBase().
  std::string state_dir;
};

// Runs the group until it has ended, and returns its exit code: 0 after a clean
// drain (or a finished task), kExitDrainCut when requests in flight had to be
// cut at its end, 1 otherwise, with the reason said on the console. SIGTERM,
// SIGINT and a terminal that hangs up drain; a second signal ends at once. A
// process's SIGHUP, SIGUSR1 and SIGUSR2 do nothing. Errors: what kept it from
// starting (a busy port, a program not found). Threading: from the main thread,
// which it blocks; no other group of this process may run.
absl::StatusOr<int> RunGroup(const GroupOptions& options, Console& console);

}  // namespace moebius
