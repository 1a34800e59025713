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
// so a caller can do other things in between. Behind a move the caller passes
// the group's fence and records the layer or wave, and whoever goes on later,
// or another process in its place, begins with the next. A move that is done
// again writes the same bytes.
//
// Layers may be begun while others are under way, MostLayers() together: a
// device copies the next one while ranks meet behind the last. They end in the
// order in which they were begun. A caller begins a layer only if nobody needs
// what it overwrites, whatever of those before it is done.
//
// After an error some of a move's destination may be written. Nothing is under
// way then, and Begin* may be called again. Checksums are not taken here:
// weights are checked beside later steps (weight_check.h), since to read them
// again would be part of the pause.
//
// Threading: thread-compatible.
class Mover {
 public:
  virtual ~Mover() = default;

  // Layers that may be under way together, at least 1.
  virtual int MostLayers() const = 0;

  // Begins to build our slot `pull.dst_slot` from everyone's `pull.src_slot`,
  // by these segments of it, which outlive the move. Never waits for bytes.
  // Errors: those of CheckSlotPull(), and kFailedPrecondition while a wave or
  // MostLayers() are under way. Segments that reach beyond a slot are
  // kInvalidArgument, here or where the move ends, before one of them is
  // copied.
  virtual absl::Status BeginLayer(const SlotPull& pull,
                                  absl::Span<const CopySegment> segments) = 0;

  // Begins our share of a wave, or of a part of it; `wave` outlives the move.
  // Errors: those of PagePuller, and kFailedPrecondition while another move is
  // under way.
  virtual absl::Status BeginWave(absl::Span<const PageMove> wave) = 0;

  // Whether the first move under way has ended; true as well when there is
  // none.
  virtual absl::StatusOr<bool> Poll() = 0;

  // Ends the first move under way, and says what it took. kFailedPrecondition
  // when there is none.
  virtual absl::StatusOr<Moved> Wait() = 0;
};

}  // namespace moebius
