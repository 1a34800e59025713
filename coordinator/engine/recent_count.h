// How much of something there was in the last seconds. Pure: time comes in.
#pragma once

#include <array>
#include <chrono>
#include <cmath>
#include <cstdint>

#include "coordinator/engine/engine.h"

namespace moebius {

// RecentCount
//
// Counts by whole seconds, so that memory and time are constant: Count() is of
// the last kRecentSeconds - 1 seconds and the part of one that has passed.
// Threading: thread-compatible.
class RecentCount {
 public:
  using Time = std::chrono::steady_clock::time_point;

  // Times may be equal but do not go back.
  void Add(Time now, uint64_t count) {
    MoveTo(now);
    counts_[second_ % kRecentSeconds] += count;
  }

  uint64_t Count(Time now) {
    MoveTo(now);
    uint64_t sum = 0;
    for (const uint64_t count : counts_) sum += count;
    return sum;
  }

  // The average over that time.
  double PerSecond(Time now) {
    const std::chrono::duration<double> since = now.time_since_epoch();
    const double part = since.count() - std::floor(since.count());
    return static_cast<double>(Count(now)) / (kRecentSeconds - 1 + part);
  }

 private:
  void MoveTo(Time now) {
    const int64_t second =
        std::chrono::floor<std::chrono::seconds>(now.time_since_epoch())
            .count();
    if (second - second_ >= kRecentSeconds) {
      counts_.fill(0);
      second_ = second;
    }
    while (second_ < second) counts_[++second_ % kRecentSeconds] = 0;
  }

  int64_t second_ = 0;
  std::array<uint64_t, kRecentSeconds> counts_{};
};

}  // namespace moebius
