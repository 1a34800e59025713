#include "worker/steps/thread_step_engine.h"

#include <utility>

#include "common/base/status_macros.h"

namespace moebius {

absl::StatusOr<std::unique_ptr<ThreadStepEngine>> ThreadStepEngine::Create(
    StepRunner* runner, Tell tell) {
  ASSIGN_OR_RETURN(Completion completion, Completion::Create());
  return std::unique_ptr<ThreadStepEngine>(
      new ThreadStepEngine(runner, tell, std::move(completion)));
}

ThreadStepEngine::ThreadStepEngine(StepRunner* runner, Tell tell,
                                   Completion completion)
    : runner_(runner),
      tell_(tell),
      completion_(std::move(completion)),
      thread_([this] { ThreadMain(); }) {}

ThreadStepEngine::~ThreadStepEngine() {
  {
    absl::MutexLock lock(&mutex_);
    over_ = true;
    queue_.Drop();
  }
  thread_.join();
}

void ThreadStepEngine::Issue(Batch batch) {
  absl::MutexLock lock(&mutex_);
  queue_.Issue(std::move(batch));
}

std::optional<StepEnd> ThreadStepEngine::Collect() {
  // Before the look: what ends behind it rings again.
  completion_.Clear();
  absl::MutexLock lock(&mutex_);
  return queue_.Collect();
}

void ThreadStepEngine::Await() {
  absl::MutexLock lock(&mutex_);
  mutex_.Await(absl::Condition(this, &ThreadStepEngine::HasEnd));
}

void ThreadStepEngine::Drain() {
  absl::MutexLock lock(&mutex_);
  mutex_.Await(absl::Condition(this, &ThreadStepEngine::IsDrained));
}

std::optional<Batch> ThreadStepEngine::Next() {
  absl::MutexLock lock(&mutex_);
  mutex_.Await(absl::Condition(this, &ThreadStepEngine::HasWork));
  if (over_) return std::nullopt;
  return queue_.Begin();
}

void ThreadStepEngine::ThreadMain() {
  while (std::optional<Batch> batch = Next()) {
    absl::StatusOr<StepResult> result = runner_->Run(*std::move(batch));
    StepEnd end{result.status(), {}};
    if (result.ok()) end.result = *std::move(result);
    const bool tell = tell_ == Tell::kEachStep || !end.status.ok();
    {
      absl::MutexLock lock(&mutex_);
      queue_.End(std::move(end));
    }
    if (tell) completion_.Ring();
  }
}

}  // namespace moebius
