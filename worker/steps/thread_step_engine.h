// The processor as a device: steps on a thread of their own.
#pragma once

#include <memory>
#include <optional>
#include <thread>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "worker/steps/completion.h"
#include "worker/steps/step_engine.h"
#include "worker/steps/step_queue.h"
#include "worker/steps/step_runner.h"

namespace moebius {

// ThreadStepEngine
//
// Cost: handing a step over takes a lock that nobody holds for long, and a
// system call only where the other side sleeps. With the next step issued
// before one ends, the thread never does; else it sleeps at once. (To look for
// one and offer the core meanwhile loses the core, for milliseconds, to
// whatever else computes on the machine.) Memory order: what a step wrote is
// seen by who has collected it, or drained.
class ThreadStepEngine final : public StepEngine {
 public:
  // `runner` outlives it. An error: the kernel has no descriptor for us.
  static absl::StatusOr<std::unique_ptr<ThreadStepEngine>> Create(
      StepRunner* runner, Tell tell);
  ~ThreadStepEngine() override;

  void Issue(Batch batch) override;
  std::optional<StepEnd> Collect() override;
  void Await() override;
  void Drain() override;
  int completion_fd() const override { return completion_.fd(); }

 private:
  ThreadStepEngine(StepRunner* runner, Tell tell, Completion completion);

  void ThreadMain();
  // Waits for the next step; nothing: the engine ends.
  std::optional<Batch> Next();
  bool HasWork() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    return over_ || queue_.waiting();
  }
  bool HasEnd() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    return queue_.ended() || queue_.drained();
  }
  bool IsDrained() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    return queue_.drained();
  }

  StepRunner* const runner_;
  const Tell tell_;
  const Completion completion_;
  absl::Mutex mutex_;
  StepQueue queue_ ABSL_GUARDED_BY(mutex_);
  bool over_ ABSL_GUARDED_BY(mutex_) = false;
  std::thread thread_;  // last: it uses the others
};

}  // namespace moebius
