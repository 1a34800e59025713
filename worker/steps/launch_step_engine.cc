#include "worker/steps/launch_step_engine.h"

#include <utility>

#include "common/base/status_macros.h"

namespace moebius {

absl::StatusOr<std::unique_ptr<LaunchStepEngine>> LaunchStepEngine::Create(
    StepLauncher* launcher, Tell tell) {
  ASSIGN_OR_RETURN(Completion completion, Completion::Create());
  return std::unique_ptr<LaunchStepEngine>(
      new LaunchStepEngine(launcher, tell, std::move(completion)));
}

LaunchStepEngine::LaunchStepEngine(StepLauncher* launcher, Tell tell,
                                   Completion completion)
    : launcher_(launcher),
      tell_(tell),
      completion_(std::move(completion)),
      awaiting_([this] { AwaitMain(); }),
      launching_([this] { LaunchMain(); }) {}

LaunchStepEngine::~LaunchStepEngine() {
  {
    absl::MutexLock lock(&mutex_);
    over_ = true;
    queue_.Drop();
  }
  launching_.join();
  {
    absl::MutexLock lock(&mutex_);
    all_awaited_ = true;
  }
  awaiting_.join();
}

void LaunchStepEngine::Issue(Batch batch) {
  absl::MutexLock lock(&mutex_);
  queue_.Issue(std::move(batch));
}

std::optional<StepEnd> LaunchStepEngine::Collect() {
  // Before the look: what ends behind it rings again.
  completion_.Clear();
  absl::MutexLock lock(&mutex_);
  return queue_.Collect();
}

void LaunchStepEngine::Await() {
  absl::MutexLock lock(&mutex_);
  mutex_.Await(absl::Condition(this, &LaunchStepEngine::HasEnd));
}

void LaunchStepEngine::Drain() {
  absl::MutexLock lock(&mutex_);
  mutex_.Await(absl::Condition(this, &LaunchStepEngine::IsDrained));
}

void LaunchStepEngine::Enter() {
  Batch batch = queue_.Enter();
  mutex_.Unlock();
  launcher_->Enter(std::move(batch));
  const bool can_launch = launcher_->CanLaunch();
  mutex_.Lock();
  can_launch_ = can_launch;
}

void LaunchStepEngine::Launch() {
  mutex_.Unlock();
  const absl::Status launched = launcher_->Launch();
  mutex_.Lock();
  can_launch_ = false;
  queue_.Launch(launched);
}

void LaunchStepEngine::End() {
  StepEnd end{queue_.ToEnd(), {}};
  mutex_.Unlock();
  if (end.status.ok()) {
    absl::StatusOr<StepResult> result = launcher_->Finish();
    end.status = result.status();
    if (result.ok()) end.result = *std::move(result);
  }
  if (!end.status.ok()) launcher_->Drain();
  mutex_.Lock();
  const bool tell = tell_ == Tell::kEachStep || !end.status.ok();
  queue_.End(std::move(end));
  can_launch_ = queue_.has_entered() && launcher_->CanLaunch();
  if (tell) completion_.Ring();
}

void LaunchStepEngine::LaunchMain() {
  absl::MutexLock lock(&mutex_);
  for (;;) {
    mutex_.Await(absl::Condition(this, &LaunchStepEngine::HasWork));
    busy_ = true;
    if (queue_.can_end()) {
      End();
    } else if (can_launch_) {
      Launch();
    } else if (queue_.can_enter()) {
      Enter();
    } else {
      busy_ = false;
      return;  // over, and drained
    }
    busy_ = false;
  }
}

void LaunchStepEngine::AwaitMain() {
  absl::MutexLock lock(&mutex_);
  for (;;) {
    mutex_.Await(absl::Condition(this, &LaunchStepEngine::HasToAwait));
    const std::optional<LaunchQueue::Turn> turn = queue_.ToAwait();
    if (!turn.has_value()) return;
    mutex_.Unlock();
    launcher_->AwaitEnd(turn->step);
    mutex_.Lock();
    queue_.Awaited(turn->turn);
  }
}

}  // namespace moebius
