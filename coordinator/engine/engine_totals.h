// What the engine counts, for metrics: of generations, switches and steps.
#pragma once

#include <algorithm>
#include <array>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <vector>

#include "common/base/histogram.h"
#include "common/layout/layout.h"
#include "coordinator/engine/histogram_bounds.h"
#include "coordinator/generation.h"

namespace moebius {

// Of generations that have ended, by how: [FinishReason]. Those that ended by
// themselves (stop, length) are in the histograms too.
struct GenerationTotals {
  std::array<uint64_t, 4> ended{};
  // Seconds: accepted to admitted, to the first token, from there to the last
  // one; per token behind the first.
  Histogram queue{kRequestBounds}, prefill{kRequestBounds},
      decode{kRequestBounds}, per_token{kInterTokenBounds};
  Histogram prompt_tokens{kTokenBounds}, answer_tokens{kTokenBounds};

  uint64_t of(FinishReason reason) const {
    return ended[static_cast<size_t>(reason)];
  }
};

// When what happened to a generation.
struct GenerationTimes {
  using Time = std::chrono::steady_clock::time_point;
  size_t num_prompt = 0, num_tokens = 0;
  Time accepted, admitted, first_token, last_token;

  void OnAdmitted(Time now) {
    // Again after a preemption: only the first time counts.
    if (admitted == Time()) admitted = now;
  }
  void OnToken(Time now) {
    if (num_tokens++ == 0) first_token = now;
    last_token = now;
  }
};

inline void CountEnd(const GenerationTimes& times, FinishReason reason,
                     GenerationTotals& totals) {
  ++totals.ended[static_cast<size_t>(reason)];
  const bool by_itself =
      reason == FinishReason::kStop || reason == FinishReason::kLength;
  // An earlier coordinator may have seen its beginning.
  constexpr GenerationTimes::Time kUnseen;
  if (!by_itself || times.admitted == kUnseen || times.first_token == kUnseen) {
    return;
  }
  const auto seconds = [](auto from, auto to) {
    return std::chrono::duration<double>(to - from).count();
  };
  totals.queue.Add(seconds(times.accepted, times.admitted));
  totals.prefill.Add(seconds(times.admitted, times.first_token));
  const double decode = seconds(times.first_token, times.last_token);
  totals.decode.Add(decode);
  totals.per_token.Add(decode / std::max<double>(1, times.num_tokens - 1));
  totals.prompt_tokens.Add(times.num_prompt);
  totals.answer_tokens.Add(times.num_tokens);
}

// Of switches from one layout to another.
struct SwitchTotals {
  Layout from, to;
  uint64_t done = 0, refused = 0;
  uint64_t weight_bytes = 0, kv_bytes = 0;
  // Seconds of those done: from PREPARE to its last answer, copies of the
  // slowest worker, and the longest that running streams waited.
  double prepare_seconds = 0, copy_seconds = 0;
  std::optional<int64_t> last_took_ms;  // the last one done, as a whole
  Histogram pause{kStepBounds};
};

// Of steps in one layout: their duration on the workers.
struct StepTotals {
  Layout layout;
  Histogram seconds{kStepBounds};
};

// The entry of a direction, or of a layout; made where there is none yet.
inline SwitchTotals& TotalsOf(Layout from, Layout to,
                              std::vector<SwitchTotals>& totals) {
  for (SwitchTotals& one : totals) {
    if (one.from == from && one.to == to) return one;
  }
  return totals.emplace_back(SwitchTotals{.from = from, .to = to});
}
inline StepTotals& TotalsOf(Layout layout, std::vector<StepTotals>& totals) {
  for (StepTotals& one : totals) {
    if (one.layout == layout) return one;
  }
  return totals.emplace_back(StepTotals{.layout = layout});
}

// Of the candidates there are entries from the start, of other layouts from
// their first time on.
struct EngineTotals {
  GenerationTotals generations;
  std::vector<SwitchTotals> switches;
  std::vector<StepTotals> steps;
};

}  // namespace moebius
