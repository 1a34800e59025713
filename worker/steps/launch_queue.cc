#include "worker/steps/launch_queue.h"

#include <utility>

#include "common/base/check.h"

namespace moebius {

void LaunchQueue::Issue(Batch batch) {
  if (failed_) return;  // behind the error, which is not collected yet
  CHECK(size() < size_t{StepEngine::kMaxIssued});
  waiting_.push_back(std::move(batch));
}

Batch LaunchQueue::Enter() {
  CHECK(can_enter());
  Batch batch = std::move(waiting_.front());
  waiting_.pop_front();
  entered_ = batch.step;
  return batch;
}

void LaunchQueue::Launch(const absl::Status& status) {
  CHECK(entered_.has_value());
  under_way_.push_back({{next_turn_++, *entered_}, status});
  entered_.reset();
  if (status.ok()) return;
  failed_ = true;
  waiting_.clear();
}

std::optional<LaunchQueue::Turn> LaunchQueue::ToAwait() const {
  for (const Launched& step : under_way_) {
    if (step.turn.turn > awaited_ && step.launched.ok()) return step.turn;
  }
  return std::nullopt;
}

void LaunchQueue::Awaited(uint64_t turn) {
  CHECK(awaited_ < turn && turn < next_turn_);
  awaited_ = turn;
}

bool LaunchQueue::can_end() const {
  if (under_way_.empty()) return false;
  const Launched& first = under_way_.front();
  return !first.launched.ok() || first.turn.turn <= awaited_;
}

void LaunchQueue::End(StepEnd end) {
  CHECK(can_end());
  under_way_.pop_front();
  if (!end.status.ok()) {
    failed_ = true;
    waiting_.clear();
    entered_.reset();
    under_way_.clear();
  }
  ended_.push_back(std::move(end));
}

std::optional<StepEnd> LaunchQueue::Collect() {
  if (ended_.empty()) return std::nullopt;
  StepEnd end = std::move(ended_.front());
  ended_.pop_front();
  if (!end.status.ok()) failed_ = false;
  return end;
}

}  // namespace moebius
