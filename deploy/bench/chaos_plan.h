// What `moebius chaos` is to do to a group, and what that may cost.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace moebius {

enum class ChaosDeed {
  kKillWorker,       // SIGKILL
  kStopWorker,       // SIGSTOP, and SIGCONT after resume_ms
  kKillCoordinator,  // SIGKILL
  kSwitch,           // to another layout of ChaosPlan::layouts
  kFault,            // arms a fault point
};
std::string_view ChaosDeedName(ChaosDeed deed);

struct ChaosAction {
  ChaosDeed deed = ChaosDeed::kKillWorker;
  int first_ms = 0;   // from the beginning of the load
  int every_ms = 0;   // 0: once
  int jitter_ms = 0;  // each time that much later at most, drawn by the seed
  int rank = -1;      // -1: drawn by the seed
  int resume_ms = 0;  // kStopWorker; 0: never
  std::string fault;  // kFault: see common/faults/fault_point.h
};

struct ChaosLimits {
  // Longest time that any stream went without a token; 0: no limit.
  double longest_stall_ms = 0;
  // Median, over the deeds that are kills, of the longest such time.
  double median_stall_ms = 0;
  // Positions of KV that had to be computed again.
  std::optional<uint64_t> dropped_tokens;
};

struct ChaosPlan {
  int duration_ms = 10'000;
  int streams = 8;
  int prompt_tokens = 32;
  int output_tokens = 400;
  uint64_t seed = 1;
  // Where there are several to switch to, the seed draws one.
  std::vector<std::string> layouts = {"ep", "tp"};
  std::vector<ChaosAction> actions;
  ChaosLimits limits;
};

// Errors are kInvalidArgument and name file, line, key and what is allowed;
// kNotFound for a file that is not there.
absl::StatusOr<ChaosPlan> LoadChaosPlan(const std::string& path);

// One time that something is to be done.
struct ChaosMoment {
  int at_ms = 0;
  const ChaosAction* action = nullptr;
};
// All of them in order; equal plans give equal moments. At most
// kMaxChaosMoments, the latest are cut off. `plan` outlives the result.
inline constexpr size_t kMaxChaosMoments = 100'000;
std::vector<ChaosMoment> MomentsOf(const ChaosPlan& plan);

// A number below `count` for the index-th draw of a plan.
uint64_t ChaosDraw(uint64_t seed, uint64_t index, uint64_t count);

}  // namespace moebius
