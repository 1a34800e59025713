// A WeightCheck on a thread of its own.
#pragma once

#include <atomic>
#include <cstddef>
#include <optional>
#include <thread>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "common/layout/experts_state.h"
#include "worker/switch/weight_check.h"

namespace moebius {

// ThreadWeightCheck
//
// The thread runs where nobody else wants the core (SCHED_IDLE), so that steps
// are not slower for it, and gives up within one unit of rows.
class ThreadWeightCheck final : public WeightCheck {
 public:
  // `experts`: base of the region, which outlives this.
  ThreadWeightCheck(const ExpertShape& shape, Rank rank,
                    const std::byte* experts);
  ~ThreadWeightCheck() override;

  void Begin(Epoch epoch, const ExpertsState& state) override;
  void GiveUp() override;
  std::optional<Sum> Take() override;

 private:
  struct Task {
    Epoch epoch;
    ExpertsState state;
  };

  void Run();
  bool HasWork() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    return over_ || wanted_.has_value();
  }
  bool IsQuiet() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    return !reading_;
  }
  uint64_t Read(const ExpertsState& state) const;

  const ExpertShape shape_;
  const Rank rank_;
  const std::byte* const experts_;

  std::atomic<bool> stop_{false};  // what is being read is given up
  // Whether done_ is there: a look takes no lock, which a thread that runs
  // only on idle cores may hold for long.
  std::atomic<bool> ready_{false};
  absl::Mutex mutex_;
  std::optional<Task> wanted_ ABSL_GUARDED_BY(mutex_);  // not begun yet
  bool reading_ ABSL_GUARDED_BY(mutex_) = false;
  bool over_ ABSL_GUARDED_BY(mutex_) = false;
  std::optional<Sum> done_ ABSL_GUARDED_BY(mutex_);
  std::thread thread_;  // last: it uses the others
};

}  // namespace moebius
