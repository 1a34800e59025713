// Steps on a device that takes the next one before it has done the last.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <thread>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "worker/steps/completion.h"
#include "worker/steps/launch_queue.h"
#include "worker/steps/step_engine.h"
#include "worker/steps/step_launcher.h"

namespace moebius {

// LaunchStepEngine
//
// A thread launches, and takes results; another does nothing but await ends.
// Memory order: what a step wrote is seen by who has collected it, or drained.
class LaunchStepEngine final : public StepEngine {
 public:
  // `launcher` outlives it. An error: the kernel has no descriptor for us.
  static absl::StatusOr<std::unique_ptr<LaunchStepEngine>> Create(
      StepLauncher* launcher, Tell tell);
  ~LaunchStepEngine() override;

  void Issue(Batch batch) override;
  std::optional<StepEnd> Collect() override;
  void Await() override;
  void Drain() override;
  int completion_fd() const override { return completion_.fd(); }

 private:
  LaunchStepEngine(StepLauncher* launcher, Tell tell, Completion completion);

  void LaunchMain();
  void AwaitMain();
  // One thing that there is to do. The lock is let go meanwhile.
  void Enter() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void Launch() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void End() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  bool HasWork() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    return queue_.can_end() || queue_.can_enter() || can_launch_ ||
           (over_ && queue_.drained());
  }
  bool HasToAwait() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    return queue_.ToAwait().has_value() || all_awaited_;
  }
  bool HasEnd() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    return queue_.ended() || IsDrained();
  }
  bool IsDrained() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    return queue_.drained() && !busy_;
  }

  StepLauncher* const launcher_;
  const Tell tell_;
  const Completion completion_;
  absl::Mutex mutex_;
  LaunchQueue queue_ ABSL_GUARDED_BY(mutex_);
  // Of the step that has entered. Asked again when a step has ended.
  bool can_launch_ ABSL_GUARDED_BY(mutex_) = false;
  bool busy_ ABSL_GUARDED_BY(mutex_) = false;  // the launcher is at work
  bool over_ ABSL_GUARDED_BY(mutex_) = false;
  bool all_awaited_ ABSL_GUARDED_BY(mutex_) = false;
  std::thread awaiting_, launching_;  // last: they use the others
};

}  // namespace moebius
