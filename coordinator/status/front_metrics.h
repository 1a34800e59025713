// What the front counts, for /metrics.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <map>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"

namespace moebius {

// LatencyHistogram
//
// Counts of durations in fixed buckets. Threading: thread-safe, lock-free; a
// snapshot taken while others add may be short of the last few.
class LatencyHistogram {
 public:
  static constexpr int kNumBuckets = 20;
  // Upper bounds in seconds; what is above the last has a count of its own.
  static constexpr std::array<double, kNumBuckets> kBoundsSeconds = {
      0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1,
      0.2,    0.3,   0.5,   1.0,   2.0,  5.0,  10.0, 30.0, 60.0,  300.0};

  void Add(double seconds);

  struct Snapshot {
    std::array<uint64_t, kNumBuckets + 1> counts{};
    double sum_seconds = 0;
  };
  Snapshot Get() const;

 private:
  std::array<std::atomic<uint64_t>, kNumBuckets + 1> counts_{};
  std::atomic<uint64_t> sum_ns_{0};
};

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

  LatencyHistogram& first_token() { return first_token_; }
  LatencyHistogram& inter_token() { return inter_token_; }
  LatencyHistogram& request() { return request_; }

  struct Snapshot {
    std::vector<std::pair<std::pair<std::string, int>, uint64_t>> requests;
    uint64_t disconnects = 0;
    LatencyHistogram::Snapshot first_token, inter_token, request;
  };
  Snapshot Get() const;

 private:
  mutable std::mutex mutex_;
  std::map<std::pair<std::string, int>, uint64_t> requests_
      ABSL_GUARDED_BY(mutex_);
  std::atomic<uint64_t> disconnects_{0};
  LatencyHistogram first_token_, inter_token_, request_;
};

}  // namespace moebius
