// One step of a worker: what a StepPlan says, from plan to result.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "common/layout/layout.h"
#include "common/step/step_plan.h"
#include "common/step/step_result.h"
#include "kernels/sampling.h"
#include "worker/model/forward.h"
#include "worker/peers/barrier.h"
#include "worker/peers/token_board.h"
#include "worker/steps/sequence_table.h"

namespace moebius {

struct StepContext {
  Rank rank = 0;
  int num_ranks = 1;
  AttentionShape attention;
  SequenceTable* sequences = nullptr;
  Forward* forward = nullptr;
  TokenBoard* board = nullptr;
  Barrier* barrier = nullptr;
};

// StepExecutor
//
// Executing a plan again gives the same result: tokens that it drew before are
// taken back first, and every other effect writes the same bytes to the same
// places.
// Errors mean that the worker cannot go on: coordinator and worker disagree
// (kInvalidArgument), or a peer did not come (from the barrier).
// Threading: thread-compatible.
class StepExecutor {
 public:
  explicit StepExecutor(const StepContext& context);

  // The result is the group's: what all ranks drew, and what they refused.
  // REQUIRES: plan.layout is the layout that weights and pages are in.
  absl::StatusOr<StepResult> Execute(const StepPlan& plan);

 private:
  // A row whose logits are wanted, and for what.
  struct LogitRow {
    uint32_t slot = 0;
    uint32_t position = 0;  // of the token that the logits speak of
    bool sample = false;    // draw it; else it is known: its log-probability
  };
  class Sink;

  // Fills the batch with the work that is not refused; says what is.
  absl::Status BuildBatch(const StepPlan& plan, StepResult& result);
  absl::Status AddItem(const WorkItem& item, int num_kv);
  absl::Status Compute(StepResult& result);
  // Shows our tokens and log-probabilities, adds everyone's to `result`.
  absl::Status ShareTokens(StepResult& result);

  StepContext context_;
  Sampler sampler_;

  // The batch, kept to keep its memory.
  ForwardBatch batch_;
  std::vector<int32_t> tokens_;
  std::vector<uint32_t> positions_;
  std::vector<uint32_t> row_sequence_;
  std::vector<SequencePages> pages_;
  std::vector<int> rows_of_rank_;
  std::vector<uint32_t> logit_rows_;
  std::vector<LogitRow> wanted_;  // beside logit_rows_
};

}  // namespace moebius
