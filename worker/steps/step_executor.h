// One step of a rank on the processor: from its batch to the group's result.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/sampling.h"
#include "worker/model/forward.h"
#include "worker/peers/barrier.h"
#include "worker/peers/token_board.h"
#include "worker/steps/device_slots.h"
#include "worker/steps/step_runner.h"

namespace moebius {

struct StepContext {
  Rank rank = 0;
  int num_ranks = 1;
  DeviceSlots* slots = nullptr;
  Forward* forward = nullptr;
  TokenBoard* board = nullptr;
  Barrier* barrier = nullptr;
};

// StepExecutor
//
// A step that failed has appended no token, but its slots may be those of the
// step already: they have to be replaced before another.
// Errors: a peer did not come, or gave up (from the barrier); or it shows what
// cannot be (kInvalidArgument, kDataLoss).
// Threading: thread-compatible.
class StepExecutor final : public StepRunner {
 public:
  explicit StepExecutor(const StepContext& context);

  absl::StatusOr<StepResult> Run(Batch batch) override;

 private:
  // A row whose logits are wanted, and for what.
  struct LogitRow {
    uint32_t slot = 0;
    uint32_t position = 0;  // of the token that the logits speak of
    bool sample = false;    // draw it; else it is known: its log-probability
  };
  class Sink;

  void AddRows(const Batch& batch);
  void AddChunk(const Batch::Chunk& chunk);
  absl::Status Compute(const Batch& batch, StepResult& result);
  // Shows our tokens and log-probabilities, adds everyone's to `result`.
  absl::Status ShareTokens(StepResult& result);

  StepContext context_;
  Sampler sampler_;

  // What the forward pass is given, kept to keep its memory.
  std::vector<int32_t> tokens_;
  std::vector<uint32_t> positions_;
  std::vector<uint32_t> row_sequence_;
  std::vector<SequencePages> pages_;
  std::vector<uint32_t> logit_rows_;
  std::vector<LogitRow> wanted_;  // beside logit_rows_
};

}  // namespace moebius
