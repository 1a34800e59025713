// Plain copies on the GPUs of a group, in the same run: what the copies of its
// switches are compared with.
#pragma once

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "common/config/config.h"
#include "deploy/bench/gpu_share.h"
#include "deploy/client/admin_client.h"
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

  // Beside a group that should be idle. Starts a program of ours, which takes
  // medians; between several GPUs that is seconds, so once a run is enough.
  absl::Status Measure(absl::Duration timeout);

  // Adds what was measured, and the ratios to it of these switches (medians).
  void AddTo(nlohmann::json& figures,
             const std::vector<SwitchFigures>& switches) const;
  // The same in a line or two. REQUIRES: AddTo(figures, ...).
  std::string Describe(const nlohmann::json& figures) const;

 private:
  // Bytes a second.
  struct Rates {
    double kernel = 0, driver = 0, nccl = 0, nccl_packed = 0;
  };

  bool between_gpus() const { return placement_.num_gpus() > 1; }
  // What a copy between these layouts does to memory, or to a link in one
  // direction, for each byte that it moves.
  double WeightShare(const SwitchFigures& of) const;

  const Config config_;
  const GpuPlacement placement_;
  Rates rates_;
  std::string no_nccl_;  // why
};

}  // namespace moebius
