#include "worker/switch/thread_weight_check.h"

#include <sched.h>

#include <utility>

#include "worker/switch/weight_checksum.h"

namespace moebius {

ThreadWeightCheck::ThreadWeightCheck(const ExpertShape& shape, Rank rank,
                                     const std::byte* experts)
    : shape_(shape),
      rank_(rank),
      experts_(experts),
      thread_([this] { Run(); }) {}

ThreadWeightCheck::~ThreadWeightCheck() {
  GiveUp();
  {
    absl::MutexLock lock(&mutex_);
    over_ = true;
  }
  thread_.join();
}

void ThreadWeightCheck::Begin(Epoch epoch, const ExpertsState& state) {
  GiveUp();
  absl::MutexLock lock(&mutex_);
  wanted_ = Task{epoch, state};
}

void ThreadWeightCheck::GiveUp() {
  absl::MutexLock lock(&mutex_);
  wanted_.reset();
  stop_.store(true);
  mutex_.Await(absl::Condition(this, &ThreadWeightCheck::IsQuiet));
  stop_.store(false);
  ready_.store(false);
  done_.reset();
}

std::optional<WeightCheck::Sum> ThreadWeightCheck::Take() {
  if (!ready_.exchange(false)) return std::nullopt;
  absl::MutexLock lock(&mutex_);
  return std::exchange(done_, std::nullopt);
}

uint64_t ThreadWeightCheck::Read(const ExpertsState& state) const {
  uint64_t sum = 0;
  for (int layer = 0; layer < shape_.num_moe_layers; ++layer) {
    sum += LayerChecksum(shape_, state, rank_, experts_, layer, &stop_);
  }
  return sum;
}

void ThreadWeightCheck::Run() {
  // Without it the check would only be dearer to the steps.
  const sched_param none{};
  [[maybe_unused]] const int set = sched_setscheduler(0, SCHED_IDLE, &none);
  for (;;) {
    Task task;
    {
      absl::MutexLock lock(&mutex_);
      mutex_.Await(absl::Condition(this, &ThreadWeightCheck::HasWork));
      if (over_) return;
      task = *std::exchange(wanted_, std::nullopt);
      reading_ = true;
    }
    const uint64_t checksum = Read(task.state);
    absl::MutexLock lock(&mutex_);
    reading_ = false;
    if (stop_.load()) continue;
    done_ = Sum{task.epoch, checksum};
    ready_.store(true);
  }
}

}  // namespace moebius
