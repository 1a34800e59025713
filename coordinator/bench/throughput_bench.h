// Measures a group through the engine alone: no HTTP, no text on the way in.
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/base/deadline.h"
#include "coordinator/bench/bench_engine.h"

namespace moebius {

// ThroughputBench
//
// Runs the cases of a specification, each `repeat` times after one unmeasured
// run, and writes medians. All streams of a case are submitted at once, greedy,
// and do not stop at an end-of-sequence token.
//
//   in   {"repeat": 3, "time_limit_s": 600,
//         "cases": [{"streams": 8, "prompt_tokens": 64, "output_tokens": 128,
//                    "layout": "ep"}],
//         "rollout": {"prompt_tokens": 64, "output_tokens": [12, 400, ...],
//                     "policies": ["ep", "tp", "auto"]}}
//   out  {"cut_short": false,
//         "cases": [{... the case ..., "decode_tokens_per_s": x,
//                    "prefill_tokens_per_s": x, "step_ms_median": x}],
//         "rollout": [{"policy": "ep", "runs": 3, "seconds": x,
//                      "tokens_per_s": x, "switches": n}]}
//
// When the time is over, the result has what was run at least once, and says
// that it was cut short.
//
// decode_tokens_per_s counts from the moment when every stream has its first
// token until one of them has its last; 0 where one had it before. And
// prefill_tokens_per_s counts prompt tokens up to that first moment.
// step_ms_median is streams / decode_tokens_per_s.
//
// A rollout submits all its sequences at once, and ends with the last of them.
// The automatic policy begins in the candidate for the fewest requests, where
// the tail of the rollout before it would have left the group; `switches` are
// those of the run with the median time.
//
// Threading: blocks one thread; the engine's callbacks go to `engine_side()`.
class ThroughputBench {
 public:
  // `candidates`: that the load chooses among, widest groups first.
  ThroughputBench(int32_t vocab_size, std::vector<Layout> candidates)
      : vocab_size_(vocab_size), candidates_(std::move(candidates)) {}

  BenchEngine& engine_side() { return bench_; }

  // Waits until the engine is ready (or has failed), then measures.
  absl::Status Run(EngineHost& engine, const std::string& spec_path,
                   const std::string& result_path);

 private:
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
  struct Rollout {
    int prompt_tokens = 64;
    std::vector<int> output_tokens;  // [sequence]
    std::vector<std::string> policies;
  };
  struct RolloutRun {
    double seconds = 0;
    int64_t tokens = 0;
    uint64_t switches = 0;
  };

  static nlohmann::ordered_json ResultOf(const nlohmann::ordered_json& spec,
                                         const Case& one,
                                         const std::vector<Figures>& runs);
  static nlohmann::ordered_json ResultOf(const std::string& policy,
                                         std::vector<RolloutRun> runs);
  static absl::StatusOr<Rollout> ReadRollout(
      const nlohmann::ordered_json& json);

  absl::StatusOr<Figures> RunOnce(EngineHost& engine, const Case& one);
  absl::Status RunCase(EngineHost& engine, const Case& one, int repeat,
                       std::vector<Figures>& runs);
  absl::Status RunCases(EngineHost& engine, const nlohmann::ordered_json& cases,
                        int repeat, nlohmann::ordered_json& results);
  absl::Status WarmUp(EngineHost& engine, const Rollout& rollout);
  absl::StatusOr<RolloutRun> RunRollout(EngineHost& engine,
                                        const Rollout& rollout,
                                        const std::string& policy);
  absl::Status RunRollouts(EngineHost& engine,
                           const nlohmann::ordered_json& json, int repeat,
                           nlohmann::ordered_json& results);

  const int32_t vocab_size_;
  const std::vector<Layout> candidates_;
  Deadline deadline_;
  BenchEngine bench_;
};

}  // namespace moebius
