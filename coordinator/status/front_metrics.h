// What the front counts, for /metrics.
#pragma once

#include <atomic>
#include <cstdint>
#include <map>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "common/base/histogram.h"
#include "coordinator/engine/histogram_bounds.h"

namespace moebius {

// FrontMetrics
//
// Threading: thread-safe.
class FrontMetrics {
 public:
  // A request was answered. `route` is one of ours, never a client's path.
  void CountRequest(const std::string& route, int status);
  // A client went away, or was cut off, before its answer was complete.
  void CountDisconnect() {
    disconnects_.fetch_add(1, std::memory_order_relaxed);
  }

  // From a request's arrival to its first token; between tokens; from a
  // request's arrival to the end of its answer.
  SharedHistogram& first_token() { return first_token_; }
  SharedHistogram& inter_token() { return inter_token_; }
  SharedHistogram& request() { return request_; }

  struct Snapshot {
    std::vector<std::pair<std::pair<std::string, int>, uint64_t>> requests;
    uint64_t disconnects = 0;
    Histogram first_token, inter_token, request;
  };
  Snapshot Get() const;

 private:
  mutable std::mutex mutex_;
  std::map<std::pair<std::string, int>, uint64_t> requests_
      ABSL_GUARDED_BY(mutex_);
  std::atomic<uint64_t> disconnects_{0};
  SharedHistogram first_token_{kFirstTokenBounds};
  SharedHistogram inter_token_{kInterTokenBounds};
  SharedHistogram request_{kRequestBounds};
};

}  // namespace moebius
