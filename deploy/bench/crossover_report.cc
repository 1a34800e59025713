#include "deploy/bench/crossover_report.h"

#include <algorithm>
#include <map>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "common/base/cat.h"
#include "common/layout/layout.h"
#include "deploy/bench/crossover.h"
#include "deploy/cli/table.h"
#include "deploy/client/admin_client.h"

namespace moebius {
namespace {

using Json = nlohmann::json;

// Tokens a second of the layouts, by the size of their groups.
using Rates = std::map<int, double>;

// By streams, where every layout was measured.
std::map<int, Rates> RatesOf(const Json& result, int num_ranks) {
  std::map<int, Rates> by_streams;
  size_t num_layouts = 0;
  for (const Json& one : result["cases"]) {
    const double rate = NumberAt(one, "decode_tokens_per_s");
    const auto layout = ParseLayout(TextAt(one, "layout"), num_ranks);
    if (CountAt(one, "output_tokens") <= 1 || rate <= 0 || !layout.ok()) {
      continue;
    }
    Rates& rates = by_streams[static_cast<int>(CountAt(one, "streams"))];
    rates[layout->tp_size] = rate;
    num_layouts = std::max(num_layouts, rates.size());
  }
  std::erase_if(by_streams, [num_layouts](const auto& of_streams) {
    return of_streams.second.size() < num_layouts;
  });
  return by_streams;
}

std::string NameOf(int tp_size, int num_ranks) {
  return std::string(LayoutName(Layout{tp_size}, num_ranks));
}

std::string DescribeRates(const std::map<int, Rates>& by_streams,
                          int num_ranks) {
  const Rates& first = by_streams.begin()->second;
  const bool are_two = first.size() == 2;
  std::vector<std::string> titles = {"streams"};
  for (const auto& [tp_size, rate] : first) {
    titles.push_back(Cat(NameOf(tp_size, num_ranks), " tokens/s"));
  }
  if (are_two) {
    titles.push_back(Cat(NameOf(first.begin()->first, num_ranks), " / ",
                         NameOf(first.rbegin()->first, num_ranks)));
  }
  titles.push_back("fastest");
  std::vector<std::vector<std::string>> rows;
  for (const auto& [streams, rates] : by_streams) {
    std::vector<std::string> row = {Cat(streams)};
    for (const auto& [tp_size, rate] : rates) row.push_back(ShortNumber(rate));
    if (are_two) {
      row.push_back(
          ShortNumber(rates.begin()->second / rates.rbegin()->second));
    }
    const auto fastest = std::max_element(
        rates.begin(), rates.end(),
        [](const auto& a, const auto& b) { return a.second < b.second; });
    row.push_back(NameOf(fastest->first, num_ranks));
    rows.push_back(std::move(row));
  }
  return FormatTable(titles, rows);
}

}  // namespace

std::string AddCrossovers(Json& result, int num_ranks) {
  const std::map<int, Rates> by_streams = RatesOf(result, num_ranks);
  if (by_streams.size() < 2) return "";
  const Rates& layouts = by_streams.begin()->second;
  if (layouts.size() < 2) return "";
  std::string text = Cat("Decode in ", layouts.size() == 2 ? "both" : "all",
                         " layouts:\n", DescribeRates(by_streams, num_ranks));
  result["crossovers"] = Json::array();
  for (auto wide = layouts.rbegin(); std::next(wide) != layouts.rend();
       ++wide) {
    const int narrow = std::next(wide)->first;
    std::vector<LayoutRates> rates;
    for (const auto& [streams, of_layouts] : by_streams) {
      rates.push_back(
          {streams, of_layouts.at(narrow), of_layouts.at(wide->first)});
    }
    const Crossover crossover = FindCrossover(rates);
    const std::string wide_name = NameOf(wide->first, num_ranks);
    const std::string narrow_name = NameOf(narrow, num_ranks);
    result["crossovers"].push_back({{"wide", wide_name},
                                    {"narrow", narrow_name},
                                    {"wide_up_to", crossover.below},
                                    {"narrow_from", crossover.from},
                                    {"estimate", crossover.estimate}});
    text += Cat(DescribeCrossover(crossover, narrow_name, wide_name), "\n");
  }
  return text;
}

}  // namespace moebius
