// NVIDIA's library of collectives (NCCL), where a machine has it. It is opened
// when it is first asked for: programs start without it.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/base/ids.h"

struct CUstream_st;

namespace moebius {

// What the ranks of a communicator have to agree on: one makes it, all use it.
using NcclId = std::array<char, 128>;

// NcclGroup
//
// One rank's end of a communicator, for GPUs that no two ranks share: NCCL
// refuses others ("Duplicate GPU detected").
// Threading: thread-compatible; the calling thread has called UseGpu().
class NcclGroup {
 public:
  // Errors: kUnavailable that says why the library cannot be used (it is not
  // on this machine, or this program was built without its header).
  static absl::Status Find();
  static absl::StatusOr<NcclId> MakeId();
  // Waits until all ranks have come with the same id.
  static absl::StatusOr<std::unique_ptr<NcclGroup>> Create(const NcclId& id,
                                                           int num_ranks,
                                                           Rank rank);
  // Ends what is under way, also where a peer never comes.
  virtual ~NcclGroup() = default;

  // Between Begin() and End() calls are one, and none waits for another.
  virtual absl::Status Begin() = 0;
  virtual absl::Status End() = 0;

  // On the stream, in its order; each returns at once, with the error of the
  // launch.
  virtual absl::Status Send(const void* from, int64_t size_bytes, Rank to,
                            CUstream_st* stream) = 0;
  virtual absl::Status Receive(void* to, int64_t size_bytes, Rank from,
                               CUstream_st* stream) = 0;
};

}  // namespace moebius
