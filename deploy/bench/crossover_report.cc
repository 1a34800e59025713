#include "deploy/bench/crossover_report.h"

#include <map>
#include <string>
#include <vector>

#include "common/base/cat.h"
#include "deploy/bench/crossover.h"
#include "deploy/cli/table.h"
#include "deploy/client/admin_client.h"

namespace moebius {
namespace {

using Json = nlohmann::json;

// What both layouts were measured at, by streams.
std::vector<LayoutRates> RatesOf(const Json& result) {
  std::map<int, LayoutRates> by_streams;
  for (const Json& one : result["cases"]) {
    if (CountAt(one, "output_tokens") <= 1) continue;
    const int streams = static_cast<int>(CountAt(one, "streams"));
    LayoutRates& rates = by_streams[streams];
    rates.streams = streams;
    (TextAt(one, "layout") == "tp" ? rates.tp : rates.ep) =
        NumberAt(one, "decode_tokens_per_s");
  }
  std::vector<LayoutRates> both;
  for (const auto& [streams, rates] : by_streams) {
    if (rates.ep > 0 && rates.tp > 0) both.push_back(rates);
  }
  return both;
}

std::string DescribeRates(const std::vector<LayoutRates>& rates) {
  std::vector<std::vector<std::string>> rows;
  for (const LayoutRates& one : rates) {
    rows.push_back({Cat(one.streams), ShortNumber(one.ep), ShortNumber(one.tp),
                    ShortNumber(one.ep / one.tp),
                    one.ep > one.tp ? "ep" : "tp"});
  }
  return FormatTable(
      {"streams", "ep tokens/s", "tp tokens/s", "ep / tp", "faster"}, rows);
}

}  // namespace

std::string AddCrossover(Json& result) {
  const std::vector<LayoutRates> rates = RatesOf(result);
  if (rates.size() < 2) return "";
  const Crossover crossover = FindCrossover(rates);
  result["crossover"] = {{"tp_up_to", crossover.below},
                         {"ep_from", crossover.from},
                         {"estimate", crossover.estimate}};
  return Cat("Decode in both layouts:\n", DescribeRates(rates),
             DescribeCrossover(crossover), "\n");
}

}  // namespace moebius
