// What a device does that takes steps before others are done.
#pragma once

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/base/ids.h"
#include "common/step/step_result.h"
#include "worker/steps/batch.h"

namespace moebius {

// StepLauncher
//
// Each step: Enter(), then Launch() as soon as CanLaunch(), and Finish() when
// it has ended, in the order of steps. Launched and not finished, it is under
// way.
// An error of a step is one of all behind it: then Drain(), and the slots have
// to be replaced before another.
// Threading: one call at a time, but for AwaitEnd(), which may be beside
// others.
class StepLauncher {
 public:
  virtual ~StepLauncher() = default;
  // The next step. REQUIRES: the one before is launched.
  virtual void Enter(Batch batch) = 0;
  // Whether the step that has entered can be launched now. Not, it can when
  // more steps, or all, are finished.
  virtual bool CanLaunch() const = 0;
  // Never waits for the device. An error: it is not under way.
  virtual absl::Status Launch() = 0;
  // Waits until the device has done a step that is under way.
  virtual void AwaitEnd(StepId step) = 0;
  // The result of the first step under way. REQUIRES: its end was awaited.
  virtual absl::StatusOr<StepResult> Finish() = 0;
  // Gives up what has entered and is under way, and waits until the device is
  // through with it.
  virtual void Drain() = 0;
};

}  // namespace moebius
