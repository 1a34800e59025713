// One forward pass, as one rank sees it.
#pragma once

#include <cstdint>

#include "absl/types/span.h"
#include "common/layout/experts_state.h"
#include "kernels/attend.h"
#include "kernels/sample.h"

namespace moebius {

// Pass
//
// Numbers are the host's; what they count lies in memory of device D. All of it
// outlives the pass.
//
// The rows of the sequences of this rank's attention group, maybe none: the
// same on every rank of it. In EP a rank is a group, in TP all are one.
template <class D>
struct Pass {
  // The experts may be in another layout than attention, and in the midst of a
  // switch: each layer is computed where it lies.
  StepLayout layout;
  const int32_t* tokens = nullptr;  // [rows.size]
  RowSet<D> rows;
  // Those whose logits are wanted: their places among the rows, ascending (not
  // read where all are), and the rows as they are when they alone are left.
  const int32_t* wanted_rows = nullptr;  // [wanted.size]
  RowSet<D> wanted;
  Samples<D> samples;  // of wanted rows, the first ones; others draw nothing
  // Sizes of rows and of wanted in each group. [num_groups]
  absl::Span<const int> rows_of_group;
  absl::Span<const int> wanted_of_group;
};

}  // namespace moebius
