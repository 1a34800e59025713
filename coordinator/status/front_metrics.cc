#include "coordinator/status/front_metrics.h"

#include <algorithm>

namespace moebius {

void LatencyHistogram::Add(double seconds) {
  const auto* bucket =
      std::lower_bound(kBoundsSeconds.begin(), kBoundsSeconds.end(), seconds);
  counts_[bucket - kBoundsSeconds.begin()].fetch_add(1,
                                                     std::memory_order_relaxed);
  sum_ns_.fetch_add(static_cast<uint64_t>(std::max(0.0, seconds) * 1e9),
                    std::memory_order_relaxed);
}

LatencyHistogram::Snapshot LatencyHistogram::Get() const {
  Snapshot out;
  for (size_t i = 0; i < counts_.size(); ++i) {
    out.counts[i] = counts_[i].load(std::memory_order_relaxed);
  }
  out.sum_seconds = sum_ns_.load(std::memory_order_relaxed) * 1e-9;
  return out;
}

void FrontMetrics::CountRequest(const std::string& route, int status) {
  std::lock_guard lock(mutex_);
  ++requests_[{route, status}];
}

FrontMetrics::Snapshot FrontMetrics::Get() const {
  Snapshot out;
  {
    std::lock_guard lock(mutex_);
    out.requests.assign(requests_.begin(), requests_.end());
  }
  out.disconnects = disconnects_.load(std::memory_order_relaxed);
  out.first_token = first_token_.Get();
  out.inter_token = inter_token_.Get();
  out.request = request_.Get();
  return out;
}

}  // namespace moebius
