// Copies between GPUs in one run with a switch: what its copies are compared
// with.
#pragma once

#include <string>

#include "absl/status/statusor.h"

namespace moebius {

// Bytes a second that each GPU takes from the others, all GPUs at once; the
// slowest counts. 0: not measured.
struct PeerRates {
  double driver = 0;  // copy engines, one peer after the other in ring order
  double kernel = 0;  // one launch for all peers
  // NCCL: sends and receives of the same blocks as one group, and the same
  // between a packing and an unpacking, which whoever keeps experts whole or
  // rows whole needs.
  double nccl = 0;
  double nccl_packed = 0;
  std::string no_nccl;  // why it was not measured
};

// Between GPUs 0 to num_gpus - 1. Takes 3 GiB of each, and some seconds.
// Errors: of the GPUs; kUnavailable where one does not reach another.
absl::StatusOr<PeerRates> MeasurePeerCopies(int num_gpus);

}  // namespace moebius
