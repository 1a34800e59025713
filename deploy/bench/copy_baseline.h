// Plain copies on the GPUs of a group, in the same run: what the copies of its
// switches are compared with.
#pragma once

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "common/config/config.h"
#include "deploy/bench/gpu_share.h"
#include "nlohmann/json.hpp"

namespace moebius {

// CopyBaseline
//
// Where the workers share one GPU, a copy in its memory: it reads and writes
// the same memory as a switch does. Between several GPUs copies from one to the
// other, all at once, and NCCL's if it is there. On the processor memcpy is
// measured instead (shared_copy.h).
// Threading: the main thread.
class CopyBaseline {
 public:
  static bool IsFor(const Config& config) {
    return config.workers.device == DeviceChoice::kCuda;
  }
  // REQUIRES: IsFor(config).
  explicit CopyBaseline(const Config& config);

  // Once more, beside a group that should be idle. Starts a program of ours.
  absl::Status Measure(absl::Duration timeout);

  // Adds the medians of what was measured, and the ratios to them of a switch
  // between EP and TP whose ranks together copy so many bytes a second.
  void AddTo(nlohmann::json& figures, double weight_bytes_per_s,
             double kv_bytes_per_s) const;
  // The same in a line or two. REQUIRES: AddTo(figures, ...).
  std::string Describe(const nlohmann::json& figures) const;

 private:
  // Bytes a second of each measurement.
  struct Rates {
    std::vector<double> kernel, driver, nccl, nccl_packed;
  };

  bool between_gpus() const { return placement_.num_gpus() > 1; }

  const Config config_;
  const GpuPlacement placement_;
  Rates rates_;
  std::string no_nccl_;  // why
};

}  // namespace moebius
