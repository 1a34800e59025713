// Measures a group through the engine alone: no HTTP, no text on the way in.
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "common/base/deadline.h"
#include "coordinator/engine/engine_host.h"

namespace moebius {

// ThroughputBench
//
// Runs the cases of a specification, each `repeat` times after one unmeasured
// run, and writes medians. All streams of a case are submitted at once, greedy,
// and do not stop at an end-of-sequence token.
//
//   in   {"repeat": 3, "time_limit_s": 600, "cases": [{"streams": 8,
//         "prompt_tokens": 64, "output_tokens": 128, "layout": "ep"}]}
//   out  {"cut_short": false, "cases": [{... the case ...,
//         "decode_tokens_per_s": x, "prefill_tokens_per_s": x,
//         "step_ms_median": x}]}
//
// When the time is over, the result has the cases that were run at least once,
// and says that it was cut short.
//
// decode_tokens_per_s counts from the moment when every stream has its first
// token; prefill_tokens_per_s counts prompt tokens up to that moment.
// step_ms_median is streams / decode_tokens_per_s.
//
// Threading: OnOutputs is the engine's listener; Run blocks another thread.
class ThroughputBench {
 public:
  explicit ThroughputBench(int32_t vocab_size) : vocab_size_(vocab_size) {}

  void OnOutputs(const std::vector<Output>& outputs);

  // Waits until the engine is ready (or has failed, see Fail), then measures.
  absl::Status Run(EngineHost& engine, const std::string& spec_path,
                   const std::string& result_path);

  void Ready();
  void Fail(absl::Status status);

 private:
  using Clock = std::chrono::steady_clock;
  struct Case {
    int streams = 1;
    int prompt_tokens = 64;
    int output_tokens = 128;
    std::string layout;
  };
  struct Figures {
    double decode_per_s = 0;
    double prefill_per_s = 0;
  };

  static nlohmann::ordered_json ResultOf(const nlohmann::ordered_json& spec,
                                         const Case& one,
                                         const std::vector<Figures>& runs);
  absl::Status WaitUntilReady();
  absl::StatusOr<Figures> RunOnce(EngineHost& engine, const Case& one);
  absl::Status RunCase(EngineHost& engine, const Case& one, int repeat,
                       std::vector<Figures>& runs);
  absl::Status SwitchTo(EngineHost& engine, const std::string& layout);

  const int32_t vocab_size_;
  Deadline deadline_;
  absl::Mutex mutex_;
  bool ready_ ABSL_GUARDED_BY(mutex_) = false;
  absl::Status failed_ ABSL_GUARDED_BY(mutex_);
  // Of the run under way.
  int waiting_for_first_ ABSL_GUARDED_BY(mutex_) = 0;
  int unfinished_ ABSL_GUARDED_BY(mutex_) = 0;
  int64_t tokens_after_first_ ABSL_GUARDED_BY(mutex_) = 0;
  Clock::time_point all_first_ ABSL_GUARDED_BY(mutex_);
  Clock::time_point last_ ABSL_GUARDED_BY(mutex_);
  absl::flat_hash_map<RequestId, bool> started_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace moebius
