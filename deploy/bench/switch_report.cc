#include "deploy/bench/switch_report.h"

#include <algorithm>

#include "common/base/cat.h"
#include "deploy/bench/statistics.h"
#include "deploy/cli/table.h"
#include "deploy/launcher/console.h"

namespace moebius {
namespace {

using Json = nlohmann::json;

template <typename Field>
double MedianOf(const std::vector<MeasuredSwitch>& switches, Field field) {
  std::vector<double> values;
  for (const MeasuredSwitch& one : switches) {
    values.push_back(static_cast<double>(field(one)));
  }
  return Summarize(std::move(values)).median;
}

Json MediansOf(const std::vector<MeasuredSwitch>& switches) {
  const auto median = [&](auto SwitchFigures::*field) {
    return MedianOf(switches, [field](const MeasuredSwitch& one) {
      return one.figures.*field;
    });
  };
  return {{"from", switches[0].figures.from},
          {"to", switches[0].figures.to},
          {"switches", switches.size()},
          {"weight_bytes", median(&SwitchFigures::weight_bytes)},
          {"kv_bytes", median(&SwitchFigures::kv_bytes)},
          {"weight_ms", median(&SwitchFigures::weight_ms)},
          {"kv_ms", median(&SwitchFigures::kv_ms)},
          {"switch_ms", median(&SwitchFigures::switch_ms)},
          {"pause_ms", median(&SwitchFigures::pause_ms)},
          {"longest_gap_ms", MedianOf(switches, [](const MeasuredSwitch& one) {
             return one.gap_ms;
           })}};
}

}  // namespace

Json SwitchesByLayouts(const std::vector<MeasuredSwitch>& switches) {
  std::vector<std::vector<MeasuredSwitch>> pairs;
  for (const MeasuredSwitch& one : switches) {
    auto pair = std::find_if(pairs.begin(), pairs.end(), [&](const auto& of) {
      return of[0].figures.from == one.figures.from &&
             of[0].figures.to == one.figures.to;
    });
    if (pair == pairs.end()) pair = pairs.insert(pairs.end(), {{}});
    pair->push_back(one);
  }
  Json by_layouts = Json::array();
  for (const auto& pair : pairs) by_layouts.push_back(MediansOf(pair));
  return by_layouts;
}

std::string DescribeSwitchesByLayouts(const Json& by_layouts) {
  std::vector<std::vector<std::string>> rows;
  for (const Json& one : by_layouts) {
    const auto bytes = [&](const char* key) {
      return HumanBytes(static_cast<uint64_t>(NumberAt(one, key)));
    };
    const auto number = [&](const char* key) {
      return ShortNumber(NumberAt(one, key));
    };
    rows.push_back({Cat(TextAt(one, "from"), " to ", TextAt(one, "to")),
                    Cat(CountAt(one, "switches")), bytes("weight_bytes"),
                    bytes("kv_bytes"), number("switch_ms"), number("pause_ms"),
                    number("longest_gap_ms")});
  }
  return FormatTable({"medians", "switches", "weights", "KV", "all copies, ms",
                      "pause, ms", "longest gap, ms"},
                     rows);
}

}  // namespace moebius
