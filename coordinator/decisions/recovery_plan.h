// Where a new coordinator goes on: from what the journal says, and from where
// the workers' memory stands. Pure.
#pragma once

#include <optional>
#include <vector>

#include "absl/types/span.h"
#include "common/layout/layout.h"
#include "common/step/stand.h"
#include "coordinator/decisions/rank_set.h"
#include "coordinator/decisions/scheduler.h"
#include "coordinator/journal/journal_state.h"

namespace moebius {

struct RecoveryInput {
  AttentionShape attention;
  Layout initial;  // of weights that no rank has loaded yet
  // [rank], as of the round in which all have halted.
  absl::Span<const Stand> stands;
  absl::Span<const std::vector<HeldSequence>> held;
};

struct RecoveryPlan {
  // Steps go on in this layout, after `unfinished` if there is one.
  Layout layout;
  // A switch that was decided and is not complete on every rank.
  bool unfinished = false;
  // A switch that was decided and is complete, which the journal does not say.
  bool finished = false;
  // No rank has weights: the group begins anew, in `layout`.
  bool anew = false;
  StepId next_step;
  // Sequences that go on with the KV they have; all others are computed from
  // their beginning.
  std::vector<AdoptedSequence> adopted;
};

// A sequence is adopted only if every rank that says anything of its slot or of
// its request says the same, and the ranks that are to hold its KV have pages
// for what was computed on all of them. So what a plan that reached some of the
// ranks did is never taken for the state of all.
RecoveryPlan PlanRecovery(const JournalState& journal,
                          const RecoveryInput& input);

}  // namespace moebius
