#include "coordinator/decisions/experts_of_group.h"

#include <algorithm>

#include "absl/strings/str_cat.h"

namespace moebius {

absl::StatusOr<ExpertsState> ExpertsOfGroup(
    absl::Span<const Stand> stands, int num_moe_layers, Layout layout,
    const std::optional<UnfinishedSwitch>& unfinished) {
  std::optional<Side> side;  // before the unfinished switch, or now
  int layers_done = 0;
  for (size_t rank = 0; rank < stands.size(); ++rank) {
    const Stand& stand = stands[rank];
    const bool began =
        unfinished.has_value() && stand.switch_epoch == unfinished->epoch;
    // Memory that was filled in the midst of this switch counts as new until
    // the switch has ended, but what it was filled with is recorded.
    if (!stand.loaded && !began) continue;
    if (began) layers_done = std::max(layers_done, stand.layers_done);
    const bool turned =
        !began && num_moe_layers > 0 && stand.layers_done == num_moe_layers;
    const Side here = turned ? OtherSide(stand.side) : stand.side;
    if (side.has_value() && *side != here) {
      return absl::DataLossError(
          absl::StrCat("rank ", rank,
                       " has its experts on another side of their slots than "
                       "the ranks before it"));
    }
    side = here;
  }
  if (!unfinished.has_value()) {
    return ExpertsState::At(layout, side.value_or(HomeSide(layout)));
  }
  return ExpertsState{unfinished->from, unfinished->to,
                      side.value_or(HomeSide(unfinished->from)),
                      std::min(layers_done, num_moe_layers)};
}

}  // namespace moebius
