#include "common/layout/experts_state.h"

#include "absl/strings/str_cat.h"

namespace moebius {

absl::Status Validate(const ExpertsState& state, const ExpertShape& shape) {
  const int n = shape.num_ranks;
  if (!state.from.divides(n) || !state.to.divides(n) || state.layers_done < 0 ||
      state.layers_done > shape.num_moe_layers ||
      (state.steady() && state.layers_done != 0) ||
      (state.side != Side::kLow && state.side != Side::kHigh)) {
    return absl::InvalidArgumentError(
        absl::StrCat("no experts from tp_size ", state.from.tp_size, " to ",
                     state.to.tp_size, " with ", state.layers_done, " of ",
                     shape.num_moe_layers, " layers done in a group of ", n));
  }
  return absl::OkStatus();
}

}  // namespace moebius
