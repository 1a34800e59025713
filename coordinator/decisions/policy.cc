#include "coordinator/decisions/policy.h"

#include <algorithm>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "common/base/ids.h"

namespace moebius {

absl::Status Validate(const PolicyConfig& config) {
  // Written so that a NaN is refused too.
  if (!(config.threshold > 0)) {
    return absl::InvalidArgumentError(absl::StrCat(
        "switch_threshold is ", config.threshold, "; it must be above 0"));
  }
  if (!(config.hysteresis >= 0 && config.hysteresis < 1)) {
    return absl::InvalidArgumentError(absl::StrCat(
        "hysteresis is ", config.hysteresis, "; allowed: 0 to below 1"));
  }
  if (config.min_dwell_ms < 0 || config.smoothing_ms < 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("min_dwell_ms ", config.min_dwell_ms, " or smoothing_ms ",
                     config.smoothing_ms, " is negative"));
  }
  if (config.num_ranks < 1 || config.num_ranks > kMaxRanks) {
    return absl::InvalidArgumentError(
        absl::StrCat("a group of ", config.num_ranks, " ranks"));
  }
  return absl::OkStatus();
}

namespace {

// The other layout, where the load is beyond the edge for it.
std::optional<Layout> BetterLayout(double load, Layout current,
                                   const PolicyConfig& config) {
  if (!current.is_ep() && load >= UpperEdge(config)) return ExpertParallel();
  if (current.is_ep() && load <= LowerEdge(config)) {
    return TensorParallel(config.num_ranks);
  }
  return std::nullopt;
}

}  // namespace

PolicyDecision Decide(const PolicyState& state, int64_t now_ms,
                      int64_t in_flight, Layout current,
                      const PolicyConfig& config) {
  PolicyState next = state;
  const double sample = static_cast<double>(in_flight);
  if (!state.started) {
    next = {true, sample, now_ms, current, now_ms};
  } else {
    // The exact answer of a first-order low pass to a constant load, so that
    // the average does not depend on how often we look.
    const int64_t elapsed_ms = std::max<int64_t>(0, now_ms - state.updated_ms);
    const double keep =
        config.smoothing_ms == 0
            ? 0.0
            : std::exp(-static_cast<double>(elapsed_ms) /
                       static_cast<double>(config.smoothing_ms));
    next.load = sample + (state.load - sample) * keep;
    next.updated_ms = std::max(now_ms, state.updated_ms);
    if (current != state.layout) {
      next.layout = current;
      next.dwell_from_ms = next.updated_ms;
    }
  }
  if (config.num_ranks == 1 ||
      next.updated_ms - next.dwell_from_ms < config.min_dwell_ms) {
    return {next, std::nullopt};
  }
  const std::optional<Layout> target = BetterLayout(next.load, current, config);
  if (target) next.dwell_from_ms = next.updated_ms;
  return {next, target};
}

PolicyOutlook Outlook(const PolicyState& state, int64_t now_ms, Layout current,
                      const PolicyConfig& config) {
  if (config.num_ranks == 1 || !state.started) return {};
  const int64_t since_ms =
      current == state.layout
          ? std::max<int64_t>(0, now_ms - state.dwell_from_ms)
          : 0;
  return {BetterLayout(state.load, current, config),
          std::max<int64_t>(0, config.min_dwell_ms - since_ms)};
}

}  // namespace moebius
