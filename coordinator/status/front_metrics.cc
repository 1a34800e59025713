#include "coordinator/status/front_metrics.h"

namespace moebius {

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
