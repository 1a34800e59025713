#include "coordinator/decisions/policy.h"

#include <algorithm>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "common/base/ids.h"

namespace moebius {

absl::Status Validate(const PolicyConfig& config) {
  const std::vector<Layout>& candidates = config.candidates;
  if (candidates.empty() || config.thresholds.size() + 1 != candidates.size()) {
    return absl::InvalidArgumentError(absl::StrCat(
        candidates.size(), " candidates with ", config.thresholds.size(),
        " thresholds; one belongs between each two neighbours"));
  }
  for (size_t i = 0; i < candidates.size(); ++i) {
    const int width = candidates[i].tp_size;
    if (width < 1 || width > kMaxRanks ||
        (i > 0 && width >= candidates[i - 1].tp_size)) {
      return absl::InvalidArgumentError(absl::StrCat(
          "candidate ", i, " has groups of ", width,
          " ranks; the candidates' widths fall, from ", kMaxRanks, " at most"));
    }
  }
  for (size_t i = 0; i < config.thresholds.size(); ++i) {
    // Written so that a NaN is refused too.
    if (!(config.thresholds[i] > (i == 0 ? 0 : config.thresholds[i - 1]))) {
      return absl::InvalidArgumentError(
          absl::StrCat("threshold ", i, " is ", config.thresholds[i],
                       "; thresholds are above 0 and ascend"));
    }
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
  return absl::OkStatus();
}

namespace {

// The candidate that the load calls for, if it is another one.
std::optional<Layout> BetterLayout(double load, Layout current,
                                   const PolicyConfig& config) {
  const std::vector<Layout>& candidates = config.candidates;
  const size_t last = candidates.size() - 1;
  size_t at = 0;
  while (at < last && candidates[at] != current) ++at;
  if (candidates[at] != current) {
    at = 0;
    while (at < last && load >= config.thresholds[at]) ++at;
    return candidates[at];
  }
  while (at < last && load >= UpperEdge(config, at)) ++at;
  if (candidates[at] != current) return candidates[at];
  while (at > 0 && load <= LowerEdge(config, at - 1)) --at;
  if (candidates[at] != current) return candidates[at];
  return std::nullopt;
}

// Whether it can come to a proposal at all.
bool HasChoice(Layout current, const PolicyConfig& config) {
  return config.candidates.size() > 1 || config.candidates[0] != current;
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
  if (!HasChoice(current, config) ||
      next.updated_ms - next.dwell_from_ms < config.min_dwell_ms) {
    return {next, std::nullopt};
  }
  const std::optional<Layout> target = BetterLayout(next.load, current, config);
  if (target) next.dwell_from_ms = next.updated_ms;
  return {next, target};
}

PolicyOutlook Outlook(const PolicyState& state, int64_t now_ms, Layout current,
                      const PolicyConfig& config) {
  if (!HasChoice(current, config) || !state.started) return {};
  const int64_t since_ms =
      current == state.layout
          ? std::max<int64_t>(0, now_ms - state.dwell_from_ms)
          : 0;
  return {BetterLayout(state.load, current, config),
          std::max<int64_t>(0, config.min_dwell_ms - since_ms)};
}

}  // namespace moebius
