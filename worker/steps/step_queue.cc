#include "worker/steps/step_queue.h"

#include <utility>

#include "common/base/check.h"

namespace moebius {

void StepQueue::Issue(Batch batch) {
  if (failed_) return;  // behind the error, which is not collected yet
  CHECK(waiting_.size() + (running_ ? 1 : 0) + ended_.size() <
        size_t{StepEngine::kMaxIssued});
  waiting_.push_back(std::move(batch));
}

std::optional<Batch> StepQueue::Begin() {
  CHECK(!running_);
  if (waiting_.empty()) return std::nullopt;
  running_ = true;
  Batch batch = std::move(waiting_.front());
  waiting_.pop_front();
  return batch;
}

void StepQueue::End(StepEnd end) {
  CHECK(running_);
  running_ = false;
  if (!end.status.ok()) {
    failed_ = true;
    waiting_.clear();
  }
  ended_.push_back(std::move(end));
}

std::optional<StepEnd> StepQueue::Collect() {
  if (ended_.empty()) return std::nullopt;
  StepEnd end = std::move(ended_.front());
  ended_.pop_front();
  if (!end.status.ok()) failed_ = false;
  return end;
}

}  // namespace moebius
