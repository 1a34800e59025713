#include "tests/simulation/simulated_engine.h"

#include <algorithm>
#include <utility>

namespace moebius::simulation {

SimulatedEngine::SimulatedEngine(SimulatedWorker* worker, WorkerSite* site,
                                 StepRunner* runner)
    : worker_(worker), site_(site), runner_(runner) {
  worker_->BeginEngine(this, [this] { Main(); });
}

SimulatedEngine::~SimulatedEngine() {
  over_ = true;
  worker_->EndEngine();
}

void SimulatedEngine::Issue(Batch batch) {
  if (!failed_) issued_.push_back(batch);
  queue_.Issue(std::move(batch));
  if (idle_) worker_->WakeEngine();
}

void SimulatedEngine::Main() {
  idle_ = false;
  while (!over_) {
    if (std::optional<Batch> batch = queue_.Begin()) {
      Execute(*std::move(batch));
    } else {
      idle_ = true;
      worker_->Park();
      idle_ = false;
    }
  }
}

void SimulatedEngine::Execute(Batch batch) {
  ExecuteKept();
  const DeviceWhims whims = site_->OnStep(*worker_);
  while (whims.hangs && !over_) worker_->Park();
  worker_->Sleep(whims.compute_us);
  const StepId step = batch.step;
  absl::StatusOr<StepResult> result = runner_->Run(std::move(batch));
  issued_.pop_front();
  StepEnd end{result.status(), {}};
  if (result.ok()) end.result = *std::move(result);
  if (!end.status.ok()) Fail(step, end);
  const bool ok = end.status.ok();
  queue_.End(std::move(end));
  Land(whims, ok);
}

// The queue is about to drop what is issued.
void SimulatedEngine::Fail(StepId step, StepEnd& end) {
  switch (site_->BugOf(*worker_)) {
    case EngineBug::kHidesError:
      end.status = absl::OkStatus();
      end.result.step = step;
      return;
    case EngineBug::kRunsBehindError:
      behind_ = RunIssued();
      break;
    case EngineBug::kRunsInNextRound:
      kept_ = issued_;
      break;
    default:
      break;
  }
  // All that were told as done are gone; the loop hears of those that were not.
  const bool more = static_cast<int>(issued_.size()) >= pretended_;
  if (pretended_ > 0) pretended_ = more ? 0 : 1;
  issued_.clear();
}

void SimulatedEngine::Land(const DeviceWhims& whims, bool ok) {
  if (pretended_ > 0) {
    --pretended_;
    queue_.Collect();
  } else {
    const int64_t now = site_->world().now_us();
    const int64_t before = arrivals_.empty() ? now : arrivals_.back().at_us;
    failed_ = failed_ || !ok;
    // Rank 0 tells for all, as the threads of the programs do.
    arrivals_.push_back({std::max(before, now + whims.late_us),
                         whims.tells && (!ok || worker_->rank() == 0),
                         std::nullopt});
    for (StepEnd& end : std::exchange(behind_, {})) {
      arrivals_.push_back({arrivals_.back().at_us, false, std::move(end)});
    }
    worker_->OnCompletion();
  }
  worker_->OnStepEnded();
}

std::optional<int64_t> SimulatedEngine::TellsAt() const {
  for (const Arrival& arrival : arrivals_) {
    if (arrival.tells) return arrival.at_us;
  }
  return std::nullopt;
}

std::optional<StepEnd> SimulatedEngine::Collect() {
  const int64_t now = site_->world().now_us();
  if (arrivals_.empty() || arrivals_.front().at_us > now) return std::nullopt;
  Arrival& first = arrivals_.front();
  if (site_->BugOf(*worker_) == EngineBug::kSwapsResults &&
      arrivals_.size() > 1 && arrivals_[1].at_us <= now && !first.planted) {
    first.planted = queue_.Collect();
    arrivals_.erase(arrivals_.begin() + 1);
    return queue_.Collect();
  }
  std::optional<StepEnd> end =
      first.planted ? std::move(first.planted) : queue_.Collect();
  if (!end->status.ok()) failed_ = false;
  arrivals_.pop_front();
  return end;
}

void SimulatedEngine::Await() {
  if (site_->BugOf(*worker_) == EngineBug::kSkipsWaiting) PretendAll();
  while (arrivals_.empty() && !queue_.drained()) worker_->ParkUntilStepEnded();
  if (arrivals_.empty()) return;
  const int64_t left_us = arrivals_.front().at_us - site_->world().now_us();
  if (left_us > 0) worker_->Sleep(left_us);
}

void SimulatedEngine::Drain() {
  while (!queue_.drained()) worker_->ParkUntilStepEnded();
}

void SimulatedEngine::PretendAll() {
  for (; pretended_ < static_cast<int>(issued_.size()); ++pretended_) {
    StepEnd end;
    end.result.step = issued_[static_cast<size_t>(pretended_)].step;
    arrivals_.push_back({site_->world().now_us(), false, std::move(end)});
  }
}

std::vector<StepEnd> SimulatedEngine::RunIssued() {
  std::vector<StepEnd> ends;
  for (const Batch& batch : issued_) {
    absl::StatusOr<StepResult> result = runner_->Run(batch);
    StepEnd end;
    if (result.ok()) end.result = *std::move(result);
    end.result.step = batch.step;
    ends.push_back(std::move(end));
  }
  return ends;
}

void SimulatedEngine::ExecuteKept() {
  while (!kept_.empty()) {
    Batch batch = std::move(kept_.front());
    kept_.pop_front();
    runner_->Run(std::move(batch)).IgnoreError();
  }
}

}  // namespace moebius::simulation
