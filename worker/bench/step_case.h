// Steps to be measured: what is in them, and what they must move and compute at
// least. Pure.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "common/layout/layout.h"
#include "common/step/stand.h"
#include "common/step/step_plan.h"
#include "kernels/formats.h"
#include "worker/model/model_shape.h"

namespace moebius {

struct StepCase {
  enum class Kind { kDecode, kPrefill };
  Layout layout;
  Kind kind = Kind::kDecode;
  int sequences = 1;
  // Of each sequence: those whose K and V are there before the first decode
  // step; in a prefill those of its prompt.
  int tokens = 1;

  bool decodes() const { return kind == Kind::kDecode; }
  int rows() const { return decodes() ? sequences : sequences * tokens; }
  // Positions that a sequence has after so many steps.
  int length_after(int steps) const {
    return decodes() ? tokens + steps : tokens;
  }
};

// Pages of the rank that has most of them, after so many steps.
// REQUIRES, here and below: HeadsDivide() of the case's layout.
int64_t PagesOf(const StepCase& one, const ModelShape& shape, int steps);

// The sequences as they are before the first step, with pages for so many
// steps; sequence i is in slot i and in group i mod N / tp_size. Tokens are
// made up; K and V before a decode step are whatever the pages hold.
// kResourceExhausted, with the numbers, when `num_pages` of a rank do not
// suffice.
absl::StatusOr<std::vector<RestoredSequence>> PlaceSequences(
    const StepCase& one, const ModelShape& shape, uint32_t num_pages,
    int steps);

// The index-th step behind them; all sequences are in it, and a token of each
// is drawn, greedily. Of a prefill there is one.
StepPlan PlanStep(const StepCase& one, int num_ranks, StepId step, int index);

// What a step must move between memory and processors of all ranks, and what
// they must compute: every weight that it needs once on each rank that needs
// it, K and V of every sequence once, the new ones written, rows of the
// embedding. Activations may stay on the chip. Two operations a multiply-add.
struct StepWork {
  double bytes = 0;
  double operations = 0;
};
// `experts_named`: [rank][MoE layer], experts of the rank's slot that some row
// goes to. `position`: of the row in the middle of the measured steps.
StepWork WorkOf(const StepCase& one, const ModelShape& shape, KvType kv_type,
                absl::Span<const std::vector<double>> experts_named,
                double position);

}  // namespace moebius
