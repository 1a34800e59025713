#include "coordinator/api/retry_after.h"

#include <algorithm>

namespace moebius {

int RetryAfterSeconds(uint64_t waiting, uint64_t ended_recently) {
  // Each that ends makes room for one that waits. Where none has ended in the
  // whole time, one may at its end.
  const uint64_t ended = std::max<uint64_t>(ended_recently, 1);
  const uint64_t half = waiting / 2 + waiting % 2;
  const uint64_t seconds = (half * kRecentSeconds + ended - 1) / ended;
  return static_cast<int>(
      std::clamp<uint64_t>(seconds, 1, kMaxRetryAfterSeconds));
}

}  // namespace moebius
