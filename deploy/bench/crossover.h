// From how many sequences in flight on EP is faster than TP. Pure.
#pragma once

#include <string>
#include <vector>

namespace moebius {

// Tokens a second with so many sequences in flight, in each layout.
struct LayoutRates {
  int streams = 0;
  double ep = 0;
  double tp = 0;
};

// Where EP begins to be the faster one for good: at every number measured from
// `from` on it is, and at `below`, the measured number before, it is not.
struct Crossover {
  int below = 0;  // 0: EP is faster at every number measured
  int from = 0;   // 0: at the largest one TP is
  // Between the two, where both would be equally fast if the logarithm of the
  // ratio went linearly with that of the streams; 0: not between.
  double estimate = 0;
};

// `rates` in ascending order of streams, rates above 0; not empty.
Crossover FindCrossover(const std::vector<LayoutRates>& rates);

// "EP is faster from 64 streams on, TP up to 32; equal at about 41."
std::string DescribeCrossover(const Crossover& crossover);

}  // namespace moebius
