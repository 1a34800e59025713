// Brings the clock and the configuration to the pure policy.
#pragma once

#include <chrono>
#include <optional>

#include "common/config/layout_config.h"
#include "coordinator/decisions/policy.h"

namespace moebius {

// PolicyHost
//
// Looks at the load on every turn of the engine's loop while the choice is
// automatic, and proposes switches.
// Threading: the engine's thread.
class PolicyHost {
 public:
  using Clock = std::chrono::steady_clock;

  explicit PolicyHost(const Config& config) : num_ranks_(config.workers.count) {
    SetChoice(config.layout.choice);
    config_.candidates = CandidateLayouts(config);
    config_.thresholds = LayoutThresholds(config);
    config_.hysteresis = config.layout.hysteresis;
    config_.min_dwell_ms = config.layout.min_dwell_ms;
    config_.smoothing_ms = config.layout.smoothing_ms;
  }

  void SetChoice(LayoutChoice choice) {
    automatic_ = choice.is_auto() && num_ranks_ > 1;
    if (automatic_) state_ = {};
  }

  // The layout to go to now, if any. While a switch is under way the load is
  // still averaged, but nothing is proposed.
  std::optional<Layout> Decide(Clock::time_point now, int64_t in_flight,
                               Layout current, bool switching) {
    if (switching) return std::nullopt;
    PolicyDecision decision =
        moebius::Decide(state_, MsOf(now), in_flight, current, config_);
    state_ = decision.next;
    return automatic_ ? decision.switch_to : std::nullopt;
  }

  bool automatic() const { return automatic_; }
  const PolicyConfig& config() const { return config_; }
  PolicyOutlook OutlookAt(Clock::time_point now, Layout current) const {
    return Outlook(state_, MsOf(now), current, config_);
  }

  // Whether time alone, without any event, may bring a proposal.
  bool NeedsTicks() const { return automatic_; }
  double smoothed_load() const { return state_.load; }

 private:
  static int64_t MsOf(Clock::time_point now) {
    return std::chrono::duration_cast<std::chrono::milliseconds>(
               now.time_since_epoch())
        .count();
  }

  bool automatic_ = false;
  int num_ranks_;
  PolicyConfig config_;
  PolicyState state_;
};

}  // namespace moebius
