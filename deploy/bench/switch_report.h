// What the switches of a benchmark took, from each layout to each other. Pure.
#pragma once

#include <string>
#include <vector>

#include "deploy/client/admin_client.h"
#include "nlohmann/json.hpp"

namespace moebius {

struct MeasuredSwitch {
  SwitchFigures figures;
  double gap_ms = 0;  // the longest of a stream across it
};

// A list with the medians of each pair of layouts, in the order in which they
// came: {"from", "to", "switches", "weight_bytes", "kv_bytes", "weight_ms",
// "kv_ms", "switch_ms", "pause_ms", "longest_gap_ms"}.
nlohmann::json SwitchesByLayouts(const std::vector<MeasuredSwitch>& switches);

// It as a table.
std::string DescribeSwitchesByLayouts(const nlohmann::json& by_layouts);

}  // namespace moebius
