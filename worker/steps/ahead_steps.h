// Steps of a rank whose device keeps the tokens that it draws: from a batch to
// a pass behind those that run, and from what that gave to the group's result.
#pragma once

#include <chrono>
#include <cstdint>
#include <deque>
#include <optional>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "worker/model/pass_cpu.h"
#include "worker/model/pass_launcher.h"
#include "worker/peers/barrier.h"
#include "worker/peers/result_board.h"
#include "worker/steps/device_slots.h"
#include "worker/steps/step_launcher.h"

namespace moebius {

struct AheadContext {
  Rank rank = 0;
  int num_ranks = 1;
  DeviceSlots* slots = nullptr;
  PassLauncher* passes = nullptr;
  const ResultBoard* board = nullptr;
  // Where hosts meet, in steps that need them.
  Barrier* barrier = nullptr;
};

// AheadSteps
//
// A step is launched behind others as long as it does not need a token that
// they draw, on the host: those with penalties or bad words that depend on it
// come when it is there. Two kinds of steps are alone, on all ranks: one that
// draws on the host (allowed ids), and one whose sequences are all refused,
// which is no pass. Hosts meet at the end of them, else never.
// Errors: of the passes and the barrier; kInternal where a batch does not
// follow on the slots as they are; kDataLoss or kInvalidArgument where a peer
// shows what cannot be.
class AheadSteps final : public StepLauncher {
 public:
  explicit AheadSteps(const AheadContext& context) : context_(context) {}

  void Enter(Batch batch) override;
  bool CanLaunch() const override;
  absl::Status Launch() override;
  void AwaitEnd(StepId step) override;
  absl::StatusOr<StepResult> Finish() override;
  void Drain() override;

 private:
  using Clock = std::chrono::steady_clock;
  // Of a row whose logits are wanted, on any rank.
  struct Wanted {
    Rank rank = 0;  // who has its result, and where
    int row = 0;
    uint32_t slot = 0;
    uint64_t holder = 0;    // of the slot
    uint32_t position = 0;  // of the token that the logits speak of
    int32_t known = -1;     // that token; -1: it is drawn
    bool logprobs = false;
  };
  struct Step {
    StepId step;
    std::vector<Wanted> wanted;
    std::vector<RefusedSequence> refused;
    bool alone = false;
    bool has_pass = false;
    Clock::time_point begin;
  };

  bool IsAlone(const Batch& batch) const;
  bool DrawsOnHost(const Batch::Chunk& chunk) const;
  // Whether the host knows what it has to know for these rows.
  bool IsKnown(const Batch::Chunk& chunk) const;
  absl::Status CheckChunk(const Batch::Chunk& chunk) const;
  absl::Status BuildPass(const Batch& batch, Step& step);
  // Calls want(position, is drawn) for what is wanted of a chunk's rows.
  template <class F>
  void ForEachWanted(const Batch::Chunk& chunk, const F& want) const;
  void AddRows(const Batch::Chunk& chunk);
  void AddWanted(const Batch::Chunk& chunk, Layout attention, int group,
                 Step& step);
  absl::Status ExpectTokens(const Step& step);
  absl::Status Read(const Step& step, StepResult& result);
  absl::Status ReadRow(const Step& step, const Wanted& wanted,
                       StepResult& result);

  const AheadContext context_;
  PassBuilder builder_;
  std::vector<int> next_row_;  // [group] of the step that is being built
  std::optional<Batch> entered_;
  std::deque<Step> under_way_;
  Clock::time_point last_end_;
};

}  // namespace moebius
