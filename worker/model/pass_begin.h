// The first kernel of a pass: brings what the host wrote for it.
#pragma once

#include <array>
#include <cstdint>

#include "kernels/cuda/failure.h"
#include "kernels/cuda/rows.h"
#include "kernels/cuda/sample.h"
#include "worker/peers/gpu_meetings.h"

namespace moebius {

struct PassBeginning {
  // The first one has the tokens of the pass at its begin.
  std::array<HostCopy, 3> copies;
  int num_tokens = 0;
  TokenPlaces places;  // of tokens that the host does not know (TokenAtPlace)
  MeetingStart meetings;
};

// Copies, puts known tokens where others are named, and starts the meetings. A
// kernel that reads the host's memory, instead of copies by the driver: those
// would leave the GPU idle between two passes for several times as long.
// Ordering: asynchronous; the host's memory stays as it is until the stream has
//   done it.
void LaunchBeginning(const PassBeginning& beginning, CUstream_st* stream,
                     CudaFailure* failure);

}  // namespace moebius
