// An engine that a benchmark drives: what it has to be waited for.
#pragma once

#include <chrono>
#include <cstdint>
#include <optional>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_set.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "common/base/deadline.h"
#include "coordinator/engine/engine_host.h"

namespace moebius {

// BenchEngine
//
// Threading: OnOutputs is the engine's listener, Ready and Fail are its
// callbacks; the other calls are of one other thread, and block it, until
// `deadline` at most (kDeadlineExceeded).
class BenchEngine {
 public:
  // When things happened in a run.
  struct Times {
    double all_first_s = 0;  // every stream has its first token
    double total_s = 0;
    int64_t tokens = 0;
    // While all streams were under way: between all_first_s and the end of the
    // first of them. 0: there was no such time.
    double all_running_s = 0;
    int64_t tokens_of_all = 0;
  };

  void OnOutputs(const std::vector<Output>& outputs);
  void Ready();
  void Fail(absl::Status status);

  absl::Status WaitUntilReady(const Deadline& deadline);
  // When it has come to pass, and whether the layout was another one before; of
  // kAuto at once, and false.
  absl::StatusOr<bool> SetLayout(EngineHost& engine, LayoutChoice choice,
                                 const Deadline& deadline);
  // Submits all of them at once and waits for the end of the last one. Each
  // must end by its length.
  absl::StatusOr<Times> RunAll(EngineHost& engine,
                               std::vector<Generation> generations,
                               const Deadline& deadline);

 private:
  using Clock = std::chrono::steady_clock;

  absl::Mutex mutex_;
  bool ready_ ABSL_GUARDED_BY(mutex_) = false;
  absl::Status failed_ ABSL_GUARDED_BY(mutex_);
  // Of the run under way.
  int waiting_for_first_ ABSL_GUARDED_BY(mutex_) = 0;
  int unfinished_ ABSL_GUARDED_BY(mutex_) = 0;
  int64_t tokens_ ABSL_GUARDED_BY(mutex_) = 0;
  int64_t tokens_of_all_ ABSL_GUARDED_BY(mutex_) = 0;
  Clock::time_point all_first_ ABSL_GUARDED_BY(mutex_);
  std::optional<Clock::time_point> first_end_ ABSL_GUARDED_BY(mutex_);
  Clock::time_point last_ ABSL_GUARDED_BY(mutex_);
  absl::flat_hash_set<RequestId> started_ ABSL_GUARDED_BY(mutex_);
};

// A greedy generation of so many tokens that no token ends, with a made-up
// prompt; different for each `seed`.
Generation MadeUpGeneration(uint64_t seed, int32_t vocab_size,
                            int prompt_tokens, int output_tokens);

}  // namespace moebius
