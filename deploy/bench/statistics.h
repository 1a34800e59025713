// Medians and percentiles of measurements. Pure.
#pragma once

#include <cstddef>
#include <vector>

#include "nlohmann/json.hpp"

namespace moebius {

struct Summary {
  size_t count = 0;
  double mean = 0, median = 0, p99 = 0, max = 0;
};

// Percentile p (0..100) of values in ascending order, linear between the two
// nearest ranks. 0 of none.
double Percentile(const std::vector<double>& sorted, double p);

Summary Summarize(std::vector<double> values);

nlohmann::json ToJson(const Summary& summary);

}  // namespace moebius
