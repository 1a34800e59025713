// From how many sequences in flight on one layout is faster than another. Pure.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace moebius {

// Tokens a second with so many sequences in flight in two layouts: `wide` has
// the larger groups (TP beside EP).
struct LayoutRates {
  int streams = 0;
  double narrow = 0;
  double wide = 0;
};

// Where the narrow one begins to be the faster one for good: at every number
// measured from `from` on it is, and at `below`, the measured number before, it
// is not.
struct Crossover {
  int below = 0;  // 0: narrow is faster at every number measured
  int from = 0;   // 0: at the largest one wide is
  // Between the two, where both would be equally fast if the logarithm of the
  // ratio went linearly with that of the streams; 0: not between.
  double estimate = 0;
};

// `rates` in ascending order of streams, rates above 0; not empty.
Crossover FindCrossover(const std::vector<LayoutRates>& rates);

// "EP is faster from 64 streams on, TP at 32; they would be equal at about 41."
// Of layouts by name ("ep", "tp").
std::string DescribeCrossover(const Crossover& crossover,
                              std::string_view narrow, std::string_view wide);

}  // namespace moebius
