// One child of the launcher: started, watched and reaped.
#pragma once

#include <sys/types.h>

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/base/unique_fd.h"

namespace moebius {

struct ExitStatus {
  int exit_code = 0;  // when signal is 0
  int signal = 0;
};

// A running child. stdin is /dev/null, stdout and stderr are pipes whose ends
// are here, not blocking; all other descriptors but `inherited` are close-on-
// exec. It has a process group of its own, so that a Ctrl-C on the terminal
// reaches the launcher alone, and dies with the thread that started it
// (PR_SET_PDEATHSIG): start children from the main thread.
struct ChildProcess {
  pid_t pid = 0;
  UniqueFd pidfd;  // readable once it ended
  UniqueFd out, err;
};

// Starts `argv` (argv[0] is the path of the program). An exec that fails is an
// error here, not an exit of the child.
// Threading: from the main thread only.
absl::StatusOr<ChildProcess> StartChild(const std::vector<std::string>& argv,
                                        const std::vector<int>& inherited = {});

// Sends a signal. The child was not reaped yet, so its pid is still its own.
absl::Status SignalChild(const ChildProcess& child, int signal);

// Waits for the end and reaps it. Does not block once `pidfd` is readable.
ExitStatus ReapChild(const ChildProcess& child);

// Path of a program of ours: in $MOEBIUS_PROGRAM_DIR if that is set, or else
// beside this executable or in ../libexec/moebius, or else on $PATH.
// Errors: kNotFound naming the places.
absl::StatusOr<std::string> FindProgram(const std::string& name);

// Path of this executable.
absl::StatusOr<std::string> OwnProgram();

}  // namespace moebius
