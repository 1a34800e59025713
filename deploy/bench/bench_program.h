// A program of ours that measures, and ends by itself.
#pragma once

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "deploy/launcher/console.h"

namespace moebius {

// Runs `argv` (a name that FindProgram knows, and arguments) to its end; its
// lines are shown on standard error as they come.
// Errors: kInternal with its last line when its exit code is not 0;
// kDeadlineExceeded and kCancelled (a signal to stop), both after it was ended.
// Threading: from the main thread only.
absl::Status RunBenchProgram(std::vector<std::string> argv,
                             absl::Duration timeout, Console& console);

}  // namespace moebius
