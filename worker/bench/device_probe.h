// What a benchmark asks of a worker's device beside its steps.
#pragma once

#include <array>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "worker/bench/peer_copies.h"
#include "worker/model/pass_observer.h"

namespace moebius {

// Bytes a second that plain copies of large blocks read and write, together; by
// a kernel, and by the driver where there is one.
struct CopyRates {
  double kernel = 0;
  double driver = 0;  // 0: there is none
  // Where several GPUs were measured.
  std::optional<PeerRates> between_gpus;
};

// Where the time of a pass goes, on one rank; means over the watched passes.
struct PassShares {
  int passes = 0;
  std::array<double, kNumPassParts> part_ms{};
  // Of this rank's experts those to which some row went. [MoE layer]
  std::vector<double> experts_named;
};

// DeviceProbe
//
// While passes are watched they are not replayed, and something stands between
// their operators: their sum is more than an unwatched pass takes.
// Threading: one call at a time, while no step is under way. Of ranks that meet
// in passes, all are watched or none.
class DeviceProbe {
 public:
  virtual ~DeviceProbe() = default;

  // "NVIDIA H200"; "processor".
  virtual std::string device_name() const = 0;
  // Until Take(), of at most kMaxWatched passes.
  static constexpr int kMaxWatched = 16;
  virtual absl::Status Watch() = 0;
  virtual absl::StatusOr<PassShares> Take() = 0;

  // Several ranks may do it at the same time, and share what there is.
  virtual absl::StatusOr<CopyRates> MeasureCopies() = 0;
  // Operations a second of our own product of large square BF16 matrices.
  virtual absl::StatusOr<double> MeasureProducts() = 0;
};

}  // namespace moebius
