#include "deploy/bench/statistics.h"

#include <algorithm>
#include <cmath>
#include <numeric>

namespace moebius {

double Percentile(const std::vector<double>& sorted, double p) {
  if (sorted.empty()) return 0;
  const double at = p / 100.0 * static_cast<double>(sorted.size() - 1);
  const size_t below = static_cast<size_t>(std::floor(at));
  const size_t above = std::min(below + 1, sorted.size() - 1);
  const double share = at - static_cast<double>(below);
  return sorted[below] + share * (sorted[above] - sorted[below]);
}

Summary Summarize(std::vector<double> values) {
  if (values.empty()) return {};
  std::sort(values.begin(), values.end());
  Summary summary;
  summary.count = values.size();
  summary.mean = std::accumulate(values.begin(), values.end(), 0.0) /
                 static_cast<double>(values.size());
  summary.median = Percentile(values, 50);
  summary.p99 = Percentile(values, 99);
  summary.max = values.back();
  return summary;
}

nlohmann::json ToJson(const Summary& summary) {
  return {{"count", summary.count},
          {"mean", summary.mean},
          {"median", summary.median},
          {"p99", summary.p99},
          {"max", summary.max}};
}

}  // namespace moebius
