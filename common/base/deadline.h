// A point on the monotonic clock by which something must have happened.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstdint>

#include "absl/time/time.h"

namespace moebius {

// Unlike absl::Time it does not move when somebody sets the wall clock. A
// value; an infinite time-out never expires.
class Deadline {
 public:
  static Deadline After(absl::Duration timeout) {
    Deadline deadline;
    if (timeout < absl::Hours(24 * 365)) {
      deadline.at_ = Clock::now() + absl::ToChronoNanoseconds(timeout);
    }
    return deadline;
  }

  bool expired() const { return infinite() ? false : Clock::now() >= at_; }

  // Never negative.
  absl::Duration left() const {
    if (infinite()) return absl::InfiniteDuration();
    return std::max(absl::ZeroDuration(), absl::FromChrono(at_ - Clock::now()));
  }

  // For poll(2): rounded up, so that a wait of it is never too short; -1 when
  // infinite.
  int left_ms() const {
    if (infinite()) return -1;
    const int64_t ms = absl::ToInt64Milliseconds(
        left() + absl::Milliseconds(1) - absl::Nanoseconds(1));
    return static_cast<int>(std::min<int64_t>(ms, 1'000'000'000));
  }

 private:
  using Clock = std::chrono::steady_clock;
  bool infinite() const { return at_ == Clock::time_point::max(); }
  Clock::time_point at_ = Clock::time_point::max();
};

}  // namespace moebius
