// What the group's memory holds of the experts, from where each rank stands.
// Pure.
#pragma once

#include <optional>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "common/base/ids.h"
#include "common/layout/experts_state.h"
#include "common/step/stand.h"

namespace moebius {

// A switch that was decided and is not known to be complete on every rank.
struct UnfinishedSwitch {
  Epoch epoch;
  Layout from, to;
};

// ExpertsOfGroup
//
// The state that a group of `num_moe_layers` goes on from: `layout`, or the
// unfinished switch as far as it is done everywhere. A rank that has passed the
// barrier behind a layer proves it for all, whatever the others recorded, so
// the highest record counts.
//
// The side is in the workers' memory and nowhere else. A rank's record says on
// which side the layers lay when it began its last switch; if that one is done,
// they lie on the other now. Ranks without weights say nothing, and when no
// rank has any the layers will be put on their layout's home side.
//
// kDataLoss when ranks with weights have them on different sides: they are of
// two groups.
absl::StatusOr<ExpertsState> ExpertsOfGroup(
    absl::Span<const Stand> stands, int num_moe_layers, Layout layout,
    const std::optional<UnfinishedSwitch>& unfinished);

}  // namespace moebius
