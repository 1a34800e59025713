#include "deploy/bench/crossover.h"

#include <cmath>

#include "absl/strings/ascii.h"
#include "common/base/cat.h"
#include "common/base/check.h"

namespace moebius {

Crossover FindCrossover(const std::vector<LayoutRates>& rates) {
  CHECK(!rates.empty());
  size_t from = rates.size();
  while (from > 0 && rates[from - 1].narrow > rates[from - 1].wide) --from;
  Crossover found;
  if (from > 0) found.below = rates[from - 1].streams;
  if (from < rates.size()) found.from = rates[from].streams;
  if (found.below == 0 || found.from == 0) return found;
  const double before = std::log(rates[from - 1].wide / rates[from - 1].narrow);
  const double behind = std::log(rates[from].narrow / rates[from].wide);
  const double share = before / (before + behind);
  found.estimate =
      found.below * std::pow(double{1} * found.from / found.below, share);
  return found;
}

std::string DescribeCrossover(const Crossover& crossover,
                              std::string_view narrow, std::string_view wide) {
  const std::string few = absl::AsciiStrToUpper(AbslView(wide));
  const std::string many = absl::AsciiStrToUpper(AbslView(narrow));
  if (crossover.below == 0) {
    return Cat(many, " is faster than ", few,
               " at every number of streams measured, from ", crossover.from,
               " on.");
  }
  if (crossover.from == 0) {
    return Cat("At the largest number of streams measured, ", crossover.below,
               ", ", many, " is not faster than ", few, " yet.");
  }
  return Cat(many, " is faster from ", crossover.from, " streams on, ", few,
             " at ", crossover.below, "; they would be equal at about ",
             std::lround(crossover.estimate), ".");
}

}  // namespace moebius
