// The order of things in a step engine that launches steps behind one another.
// Pure.
//
//   Issue -> waiting -> Enter -> entered -> Launch -> under way -> End -> ended
//   -> Collect
//
// StepEngine (step_engine.h) says what happens behind an error. A step that
// could not be launched has ended so once those before it have.
#pragma once

#include <cstdint>
#include <deque>
#include <optional>

#include "absl/status/status.h"
#include "worker/steps/batch.h"
#include "worker/steps/step_engine.h"

namespace moebius {

class LaunchQueue {
 public:
  // REQUIRES: there is room (StepEngine::kMaxIssued).
  void Issue(Batch batch);

  // The next step, if the one before is launched.
  bool can_enter() const { return !entered_.has_value() && !waiting_.empty(); }
  Batch Enter();
  bool has_entered() const { return entered_.has_value(); }

  // The step that has entered is launched, or failed to be.
  void Launch(const absl::Status& status);

  // The first step under way whose end nobody has awaited yet; and that it was.
  // Turns grow; they name a step, as numbers of steps may come again.
  struct Turn {
    uint64_t turn = 0;
    StepId step;
  };
  std::optional<Turn> ToAwait() const;
  void Awaited(uint64_t turn);

  // The first step under way was awaited, or failed to be launched (its error
  // is then that of ToEnd).
  bool can_end() const;
  // OK: it was launched.
  const absl::Status& ToEnd() const { return under_way_.front().launched; }
  // The end of the first step under way. An error ends all.
  void End(StepEnd end);

  std::optional<StepEnd> Collect();

  // What waits is not to be launched, but for a step that has entered.
  void Drop() { waiting_.clear(); }

  bool ended() const { return !ended_.empty(); }
  // Nothing is under way or to be launched.
  bool drained() const {
    return waiting_.empty() && !entered_.has_value() && under_way_.empty();
  }

 private:
  struct Launched {
    Turn turn;
    absl::Status launched;
  };
  size_t size() const {
    return waiting_.size() + (entered_ ? 1 : 0) + under_way_.size() +
           ended_.size();
  }

  std::deque<Batch> waiting_;
  std::optional<StepId> entered_;
  std::deque<Launched> under_way_;
  std::deque<StepEnd> ended_;
  uint64_t next_turn_ = 1;
  uint64_t awaited_ = 0;  // all turns up to this one
  // A step has failed, and its error is not collected.
  bool failed_ = false;
};

}  // namespace moebius
