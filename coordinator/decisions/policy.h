// When to switch, from the load alone: the first automatic policy. Pure: the
// caller brings the time.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "absl/status/status.h"
#include "common/layout/layout.h"

namespace moebius {

// The layouts to choose among stand in a row, from the one for the fewest
// requests in flight (the widest tensor parallelism) to the one for the most
// (EP), with a threshold between each and the next:
//
//       tp         tp2         ep            8 ranks, candidates ep, tp2, tp
//   0 --------- 4 ------- 16 ----------->    requests in flight
//
// Requests in flight are averaged exponentially. At a threshold and above the
// layout to its right is the better one; to go right the average must reach
// threshold * (1 + hysteresis), to go left it must fall to threshold * (1 -
// hysteresis). So wherever it has gone, no edge back has been reached.
struct PolicyConfig {
  std::vector<Layout>
      candidates;  // widest groups first; one: nothing to choose
  // [i]: between candidates[i] and the next; requests in flight, ascending
  std::vector<double> thresholds;
  double hysteresis = 0.25;     // share of the threshold, each side; 0 <= h < 1
  int64_t min_dwell_ms = 2000;  // between a change of layout, or a proposal of
                                // one, and the next proposal
  int64_t smoothing_ms = 500;   // time constant of the average; 0: none
};

// kInvalidArgument naming the field.
absl::Status Validate(const PolicyConfig& config);

// The load at and above which the layout to the left of a threshold is left,
// and at and below which the one to its right is.
inline double UpperEdge(const PolicyConfig& config, size_t threshold) {
  return config.thresholds[threshold] * (1 + config.hysteresis);
}
inline double LowerEdge(const PolicyConfig& config, size_t threshold) {
  return config.thresholds[threshold] * (1 - config.hysteresis);
}

// What the policy remembers. Starts empty.
struct PolicyState {
  bool started = false;
  double load = 0;         // the average
  int64_t updated_ms = 0;  // when it was taken
  Layout layout;           // seen last
  int64_t dwell_from_ms = 0;
  friend bool operator==(const PolicyState&, const PolicyState&) = default;
};

struct PolicyDecision {
  PolicyState next;
  std::optional<Layout> switch_to;
};

// Looks at the load once more and may propose another candidate: the one that
// the load calls for, however far along the row. A proposal that comes to
// nothing is made again no sooner than a dwell later. The first look starts the
// dwell and takes the load as it is.
//   now_ms   of a monotonic clock; a step back counts as no time
//   current  any layout: one that is no candidate is left for the candidate
//            that the load calls for, hysteresis or not
// REQUIRES: Validate(config).ok().
PolicyDecision Decide(const PolicyState& state, int64_t now_ms,
                      int64_t in_flight, Layout current,
                      const PolicyConfig& config);

// What Decide() would propose at the load that it saw last.
struct PolicyOutlook {
  std::optional<Layout> wants;  // dwell or not
  int64_t dwell_left_ms = 0;    // until it may propose anything
  friend bool operator==(const PolicyOutlook&, const PolicyOutlook&) = default;
};
// REQUIRES: as Decide().
PolicyOutlook Outlook(const PolicyState& state, int64_t now_ms, Layout current,
                      const PolicyConfig& config);

}  // namespace moebius
