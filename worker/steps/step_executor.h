// One step of a rank on the processor: from its batch to the group's result.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "worker/model/pass_cpu.h"
#include "worker/peers/barrier.h"
#include "worker/peers/token_board.h"
#include "worker/steps/device_slots.h"
#include "worker/steps/step_runner.h"

namespace moebius {

struct StepContext {
  Rank rank = 0;
  int num_ranks = 1;
  DeviceSlots* slots = nullptr;
  // The forward pass, of a Decoder<Cpu>.
  std::function<absl::Status(const Pass<Cpu>&)> forward;
  TokenBoard* board = nullptr;
  Barrier* barrier = nullptr;
};

// StepExecutor
//
// A step that failed has appended no token, but its slots may be those of the
// step already: they have to be replaced before another.
// Errors: a peer did not come, or gave up (from the barrier); or it shows what
// cannot be (kInvalidArgument, kDataLoss); or the batch does not follow on the
// slots as they are (kInternal).
// Threading: thread-compatible.
class StepExecutor final : public StepRunner {
 public:
  explicit StepExecutor(const StepContext& context);

  absl::StatusOr<StepResult> Run(Batch batch) override;

 private:
  // A row whose logits are wanted.
  struct Wanted {
    uint32_t slot = 0;
    uint32_t position = 0;  // of the token that the logits speak of
    bool sample = false;    // draw it; else it is known: its log-probability
  };

  absl::Status BuildPass(const Batch& batch);
  absl::Status AddChunk(const Batch::Chunk& chunk);
  void Want(const Batch::Chunk& chunk, uint32_t position, bool sample);
  absl::Status Compute(const Batch& batch, StepResult& result);
  // What the pass gave here.
  void TakeResults(Layout attention, StepResult& result) const;
  // Shows our tokens and log-probabilities, adds everyone's to `result`.
  absl::Status ShareTokens(StepResult& result);

  StepContext context_;
  PassBuilder builder_;
  std::vector<Wanted> wanted_;  // beside the pass's
};

}  // namespace moebius
