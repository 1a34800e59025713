// The order of things in a step engine whose steps run one at a time. Pure.
//
//   Issue -> waiting -> Begin -> running -> End -> ended -> Collect
//
// StepEngine (step_engine.h) says what happens behind an error.
#pragma once

#include <deque>
#include <optional>

#include "worker/steps/batch.h"
#include "worker/steps/step_engine.h"

namespace moebius {

class StepQueue {
 public:
  // REQUIRES: there is room (StepEngine::kMaxIssued).
  void Issue(Batch batch);

  // The next step to run; nothing: there is none now.
  // REQUIRES: none is running.
  std::optional<Batch> Begin();

  // The end of the step that is running.
  void End(StepEnd end);

  std::optional<StepEnd> Collect();

  // What waits is not to run.
  void Drop() { waiting_.clear(); }

  bool ended() const { return !ended_.empty(); }
  bool waiting() const { return !waiting_.empty(); }
  // Nothing runs or is to run.
  bool drained() const { return waiting_.empty() && !running_; }

 private:
  std::deque<Batch> waiting_;
  bool running_ = false;
  bool failed_ = false;  // ended_ holds an error, as its last
  std::deque<StepEnd> ended_;
};

}  // namespace moebius
