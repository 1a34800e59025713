#include "deploy/bench/chaos_plan.h"

#include <algorithm>

#include "common/base/split_mix.h"

namespace moebius {

std::string_view ChaosDeedName(ChaosDeed deed) {
  switch (deed) {
    case ChaosDeed::kKillWorker:
      return "kill_worker";
    case ChaosDeed::kStopWorker:
      return "stop_worker";
    case ChaosDeed::kKillCoordinator:
      return "kill_coordinator";
    case ChaosDeed::kSwitch:
      return "switch";
    case ChaosDeed::kFault:
      return "fault";
  }
  return "";
}

uint64_t ChaosDraw(uint64_t seed, uint64_t index, uint64_t count) {
  if (count == 0) return 0;
  return SplitMix(seed * kSplitMixGamma + index + 1) % count;
}

std::vector<ChaosMoment> MomentsOf(const ChaosPlan& plan) {
  std::vector<ChaosMoment> moments;
  uint64_t draw = 0;
  for (const ChaosAction& action : plan.actions) {
    for (int64_t at = action.first_ms; at < plan.duration_ms;
         at += action.every_ms) {
      const int64_t late = static_cast<int64_t>(
          ChaosDraw(plan.seed, draw++, action.jitter_ms + 1));
      moments.push_back({static_cast<int>(at + late), &action});
      if (action.every_ms == 0 || moments.size() >= kMaxChaosMoments) break;
    }
  }
  std::stable_sort(moments.begin(), moments.end(),
                   [](const ChaosMoment& a, const ChaosMoment& b) {
                     return a.at_ms < b.at_ms;
                   });
  if (moments.size() > kMaxChaosMoments) moments.resize(kMaxChaosMoments);
  return moments;
}

}  // namespace moebius
