// What carries a switch's bytes: one layer of weights or one wave of pages at a
// time.
#pragma once

#include <chrono>
#include <cstdint>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "common/layout/blocks.h"
#include "common/layout/kv_plan.h"
#include "worker/switch/pull.h"

namespace moebius {

// What a move has taken.
struct Moved {
  int64_t bytes = 0;
  std::chrono::microseconds time{0};  // from its start to its end
};

// Mover
//
// A move is begun, and then polled or waited for. What is polled is a bounded
// piece where the host does the work itself, and a look where copy engines do,
// so a caller can do other things in between. Between moves nothing is under
// way: the caller passes the group's fence and records the layer or wave, and
// whoever goes on later, or another process in its place, begins with the next.
// A move that is done again writes the same bytes.
//
// After an error some of the move's destination may be written; Begin* may be
// called again. Checksums are not taken here: weights are checked beside later
// steps (weight_check.h), since to read them again would be part of the pause.
//
// Threading: thread-compatible.
class Mover {
 public:
  virtual ~Mover() = default;

  // Begins to build our slot `pull.dst_slot` from everyone's `pull.src_slot`,
  // by these segments of it, which outlive the move. Never waits for bytes.
  // Errors: those of CheckSlotPull(), and kFailedPrecondition while another
  // move is under way. Segments that reach beyond a slot are kInvalidArgument,
  // here or where the move ends, before one of them is copied.
  virtual absl::Status BeginLayer(const SlotPull& pull,
                                  absl::Span<const CopySegment> segments) = 0;

  // Begins our share of a wave, or of a part of it; `wave` outlives the move.
  // Errors: those of PagePuller, and as of BeginLayer().
  virtual absl::Status BeginWave(absl::Span<const PageMove> wave) = 0;

  // Whether the move has ended; true as well when none is under way.
  virtual absl::StatusOr<bool> Poll() = 0;

  // Ends the move, and says what it took. kFailedPrecondition when none was
  // begun since the last.
  virtual absl::StatusOr<Moved> Wait() = 0;
};

}  // namespace moebius
