// Sizes to which passes are padded so that they come again: a captured pass is
// replayed for all that share its key. Pure.
#pragma once

#include <vector>

#include "absl/types/span.h"
#include "common/layout/experts_state.h"

namespace moebius {

// What every rank of a group knows alike about a pass.
struct PassSizes {
  StepLayout layout;
  int num_ranks = 1;
  // Of each group of attention.
  absl::Span<const int> rows, wanted;
};

// Most rows to which passes are padded.
struct PadLimits {
  int of_step = 0;  // over all ranks
  int of_rank = 0;
};

// To how many rows every rank pads its own, also one that has none; 0: the pass
// stays as it is. All ranks come to the same number: a row's place among those
// of all groups follows from it.
//
// Padded are passes that want the logits of every row (those of decode are
// such) in layouts that are steady.
int PaddedRows(const PassSizes& sizes, const PadLimits& limits);

// All that PaddedRows gives in a layout of attention, ascending.
std::vector<int> RowBuckets(Layout attention, int num_ranks,
                            const PadLimits& limits);

// Positions for which a pass is captured that has `positions` of them, up to
// `context`, and all there are, ascending. From `alike` on what a pass launches
// does not depend on them, and so all share one bucket. A rank's own affair.
// REQUIRES: positions <= context.
int PositionBucket(int positions, int context, int alike);
std::vector<int> PositionBuckets(int context, int alike);

// Passes of one key differ in what they read from memory of the device alone.
struct PassKey {
  Layout attention;
  Layout experts;
  Side side = Side::kLow;
  int rows = 0;
  int positions = 0;
  friend bool operator==(const PassKey&, const PassKey&) = default;
};
// REQUIRES: layout.experts.steady().
PassKey KeyOf(const StepLayout& layout, int rows, int positions);

}  // namespace moebius
