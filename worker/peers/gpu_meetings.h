// Meetings of the ranks' GPUs, in the midst of their streams.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "common/base/ids.h"
#include "kernels/cuda/failure.h"
#include "worker/memory/signals.h"
#include "worker/peers/group_fence.h"

namespace moebius {

// A rank shows where it is by a number in a line of every peer's exchange
// region: line r of a region is what rank r has told its owner. The lines are
// the first bytes of the region, zero when it is new; numbers only grow.
struct alignas(kSignalsLine) MeetingLine {
  uint64_t arrived = 0;
};
inline constexpr int64_t kMeetingLinesBytes =
    int64_t{kMaxRanks} * static_cast<int64_t>(sizeof(MeetingLine));

// Of the pass that runs, in memory of the GPU.
struct MeetingState {
  uint64_t first = 0;    // number of the pass's meeting 0
  uint32_t gave_up = 0;  // 1: no meeting is waited for any more
};

// What the first kernel of a pass makes of it (meeting.cuh).
struct MeetingStart {
  MeetingState* state = nullptr;  // null: nobody meets
  uint64_t first = 0;
  int32_t gave_up = -1;  // -1: stays as it is
};

// Why, in memory of the host.
struct MeetingReport {
  uint64_t number = 0;      // of the meeting; 0: none was given up
  uint32_t missing = 0;     // bit r: rank r had not arrived
  int32_t aborted_by = -1;  // rank; -1: the deadline
};

// What a kernel needs of the group: meeting.cuh. All pointers are the GPU's.
struct MeetingRanks {
  int rank = 0;
  int num_ranks = 1;
  uint64_t timeout_ns = 0;
  const MeetingLine* lines = nullptr;    // [num_ranks], ours
  MeetingLine* line_at[kMaxRanks] = {};  // ours, in each peer's region
  const uint64_t* aborted_through[kMaxRanks] = {};  // signals of each rank
  MeetingState* state = nullptr;
  MeetingReport* report = nullptr;
};

// GpuMeetings
//
// What a kernel wrote before its rank arrives, every rank's kernels see after
// they have met it. Numbers are those of the barriers that the host passes
// (group_fence.h), so what gives these up ends a meeting too: kernels look into
// the signals, which are registered with the GPU. A meeting that all have
// arrived at counts, whatever happened since.
//
// The number of a pass's first meeting lies in memory of the GPU, and a meeting
// is named by its place in the pass: so a pass that was captured meets again.
//
// A meeting that is given up, at its deadline or by an abort, ends its pass and
// those behind it on the stream: their meetings return at once, and arrive
// nowhere, until Restart(). Threading: thread-compatible.
class GpuMeetings {
 public:
  struct Options {
    Rank rank = 0;
    // Each rank's exchange region as mapped here, for writing.
    std::vector<std::byte*> exchange;
    std::vector<std::byte*> signals;  // of each rank: SignalsBlock
    SignalsFence* fence = nullptr;    // outlives this
    absl::Duration timeout = absl::Seconds(5);
  };
  // On the GPU that the calling thread has chosen. The first error noted.
  static absl::StatusOr<std::unique_ptr<GpuMeetings>> Create(
      const Options& options, CUstream_st* stream, CudaFailure* failure);
  ~GpuMeetings();

  // The stream has nothing of ours any more: what was given up is forgotten,
  // and memories of peers that were replaced are followed. True: what kernels
  // were told is no longer so, ranks() is anew.
  bool Restart();
  // The next pass on the stream, of at most `most` meetings; or one without the
  // others, whose results mean nothing: it meets nobody, and is to end before
  // the next begins.
  MeetingStart Start(int most);
  MeetingStart StartAlone();
  // Why a pass that has ended did not meet everybody; OK if it did. `first` is
  // MeetingStart::first of that pass, and `most` what it was started with.
  absl::Status Outcome(uint64_t first, int most) const;

  const MeetingRanks& ranks() const { return ranks_; }

 private:
  GpuMeetings(const Options& options, CUstream_st* stream,
              CudaFailure* failure);
  void Register(Rank rank);
  void Unregister(Rank rank);
  bool FollowMemories();

  const Options options_;
  CUstream_st* const stream_;
  CudaFailure* const failure_;
  MeetingRanks ranks_;
  // [rank] Of the signals that the GPU sees: SignalsIdentity::memory, and
  // whether we have registered them.
  std::array<uint64_t, kMaxRanks> memory_{};
  std::array<bool, kMaxRanks> ours_{};
  MeetingReport* report_ = nullptr;  // pinned
  bool restarted_ = true;            // the next pass clears what was given up
};

}  // namespace moebius
