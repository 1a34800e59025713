// A worker's part in a switch: the check before it, and the copies.
#pragma once

#include <chrono>
#include <cstdint>
#include <optional>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/layout/experts_state.h"
#include "common/wire/wire.h"
#include "kernels/thread_pool.h"
#include "worker/memory/worker_memory.h"
#include "worker/peers/barrier.h"
#include "worker/steps/sequence_table.h"
#include "worker/switch/mover.h"

namespace moebius {

struct SwitchContext {
  Rank rank = 0;
  int num_ranks = 1;
  ExpertShape experts;
  AttentionShape attention;
  uint32_t num_pages = 0;
  WorkerMemory* memory = nullptr;
  SequenceTable* sequences = nullptr;
  Barrier* barrier = nullptr;
  ThreadPool* pool = nullptr;  // kept to cores of its own in a switch
  Mover* mover = nullptr;
};

// SwitchExecutor
//
// Prepare() changes nothing that a step can see; Commit() does the copies and
// flips layout and tables. A prepared switch waits for its Commit or Abort for
// as long as it takes: the decision is the coordinator's alone.
//
// The copies are pulls, and the mover's. Weights go layer by layer into the
// slots that are free, with a barrier and a record of progress after each;
// pages go wave by wave. A layer or wave that is done again writes the same
// bytes, since its sources are intact until every rank has passed its barrier.
// Threading: thread-compatible.
class SwitchExecutor {
 public:
  explicit SwitchExecutor(const SwitchContext& context);

  // What every memory of the group holds: steady, or a switch that was broken
  // off, until Finish.
  const ExpertsState& experts() const { return experts_; }

  // The answer to a PREPARE: refused with a reason when the switch cannot be
  // done from here. Replaces an earlier prepared one that never got a Commit.
  wire::Prepared Prepare(wire::Prepare prepare);

  // Forgets the prepared switch of that epoch; others are left alone.
  void Abort(Epoch epoch);

  // Runs the prepared switch. kFailedPrecondition, changing nothing, unless
  // that epoch is prepared; any other error leaves the group between layouts
  // until GoOn and Finish. REQUIRES: every step before the boundary has been
  // executed, none after it.
  absl::StatusOr<wire::Switched> Commit(const wire::Commit& commit);

  // Recovery: the memories hold `experts`, whatever we thought of them, and
  // every epoch up to `last` is over or to be finished. Forgets what was
  // prepared. kInvalidArgument, changing nothing, for what cannot be.
  absl::Status GoOn(const ExpertsState& experts, Epoch last);

  // Recovery: does what is left of the switch that GoOn told of. Page tables
  // are the caller's, before or after. Errors as of Commit; may be called
  // again after GoOn.
  absl::StatusOr<wire::Switched> Finish(const SwitchTail& tail);

 private:
  absl::Status Check(const wire::Prepare& prepare) const;
  absl::Status CheckMoves(const KvPlan& plan) const;
  absl::StatusOr<wire::Switched> Copy(const SwitchTail& tail);
  SlotPull PullOf(int index) const;
  absl::StatusOr<int64_t> PullLayer(absl::Span<const CopySegment> segments,
                                    int& begun);
  absl::StatusOr<int64_t> PullLayers(absl::Span<const CopySegment> segments,
                                     const SwitchTail& tail);
  absl::StatusOr<int64_t> PullWeights(const SwitchTail& tail);
  void Record(const SwitchTail& tail) const;
  absl::StatusOr<int64_t> PullPages(const SwitchTail& tail);

  SwitchContext context_;
  ExpertsState experts_;
  Epoch last_epoch_;  // of the latest PREPARE
  std::optional<wire::Prepare> prepared_;
};

}  // namespace moebius
