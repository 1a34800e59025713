#include "deploy/bench/crossover.h"

#include <cmath>

#include "common/base/cat.h"
#include "common/base/check.h"

namespace moebius {

Crossover FindCrossover(const std::vector<LayoutRates>& rates) {
  CHECK(!rates.empty());
  size_t from = rates.size();
  while (from > 0 && rates[from - 1].ep > rates[from - 1].tp) --from;
  Crossover found;
  if (from > 0) found.below = rates[from - 1].streams;
  if (from < rates.size()) found.from = rates[from].streams;
  if (found.below == 0 || found.from == 0) return found;
  const double before = std::log(rates[from - 1].tp / rates[from - 1].ep);
  const double behind = std::log(rates[from].ep / rates[from].tp);
  const double share = before / (before + behind);
  found.estimate =
      found.below * std::pow(double{1} * found.from / found.below, share);
  return found;
}

std::string DescribeCrossover(const Crossover& crossover) {
  if (crossover.below == 0) {
    return Cat("EP is faster at every number of streams measured, from ",
               crossover.from, " on.");
  }
  if (crossover.from == 0) {
    return Cat("At the largest number of streams measured, ", crossover.below,
               ", EP is not faster yet.");
  }
  return Cat("EP is faster from ", crossover.from, " streams on, TP at ",
             crossover.below, "; they would be equal at about ",
             std::lround(crossover.estimate), ".");
}

}  // namespace moebius
