// Steps, issued and collected: how a worker keeps a device at work that tells
// it late.
#pragma once

#include <optional>

#include "absl/status/status.h"
#include "common/step/step_result.h"
#include "worker/steps/batch.h"

namespace moebius {

// How a step has ended.
struct StepEnd {
  absl::Status status;
  StepResult result;  // if it is OK
};

// StepEngine
//
// Carries steps out one after the other, in the order in which they were
// issued, each as far as it can. A step is over once it is collected.
//
// An error ends its step, and everything that was issued before the error is
// collected is dropped: nothing of it runs, and no result of it comes. What is
// issued after that is another beginning.
//
// A step ends by itself only once all ranks are through with it, or at the
// deadline of its barriers. To end it now, abandon the fence (group_fence.h).
//
// The destructor drops what has not begun, and waits for what has.
// Threading: thread-compatible.
class StepEngine {
 public:
  // Steps under way: issued and not collected.
  static constexpr int kMaxIssued = 32;
  // With one that runs and one behind it the device has work until one of them
  // is collected. To be woken for more plans than that takes the host's cores
  // from the step where they are few (0.84 to 0.91 of the speed of decode, 4
  // workers on 4 cores).
  static constexpr int kEnough = 2;

  // What completion_fd() tells of.
  enum class Tell { kEachStep, kErrors };

  virtual ~StepEngine() = default;

  // Never waits for the device. REQUIRES: fewer than kMaxIssued are under way.
  virtual void Issue(Batch batch) = 0;

  // The end of the first step under way; nothing: it has not ended. Never
  // waits.
  virtual std::optional<StepEnd> Collect() = 0;

  // Waits until something can be collected, or nothing is under way.
  virtual void Await() = 0;

  // Waits until nothing runs and nothing is to be run: all that was issued can
  // be collected, or is dropped behind an error.
  virtual void Drain() = 0;

  // Readable when something may be there to collect; Collect() makes it
  // unreadable. It may tell of errors alone, where nobody waits for results.
  // -1: there is none.
  virtual int completion_fd() const = 0;
};

}  // namespace moebius
