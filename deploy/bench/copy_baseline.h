// Plain copies on the device of a group, in the same run: what the copies of
// its switches are compared with.
#pragma once

#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "common/config/config.h"
#include "nlohmann/json.hpp"

namespace moebius {

// CopyBaseline
//
// Of a group whose workers share one GPU: there a copy reads and writes the
// same memory as a switch does. Between several GPUs it would say nothing, and
// on the processor memcpy is measured instead (shared_copy.h).
// Threading: the main thread.
class CopyBaseline {
 public:
  static bool IsFor(const Config& config) {
    return config.workers.device == DeviceChoice::kCuda &&
           config.workers.per_gpu >= config.workers.count;
  }
  explicit CopyBaseline(const Config& config) : config_(config) {}

  // Once more, beside a group that should be idle. Starts a program of ours.
  absl::Status Measure(absl::Duration timeout);

  // Medians; bytes a second, read and written together. 0: nothing measured.
  double kernel() const;
  double driver() const;
  double best() const;

 private:
  const Config config_;
  std::vector<double> kernel_, driver_;
};

}  // namespace moebius
