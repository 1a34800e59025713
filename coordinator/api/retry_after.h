// When a client that the queue had no room for should come again. Pure.
#pragma once

#include <cstdint>

#include "coordinator/engine/engine.h"

namespace moebius {

inline constexpr int kMaxRetryAfterSeconds = 60;

// Seconds, 1 to kMaxRetryAfterSeconds, until half of what waits will have been
// taken up if generations go on ending as they did of late: so late that there
// is room, so early that the group does not run dry.
int RetryAfterSeconds(uint64_t waiting, uint64_t ended_recently);

}  // namespace moebius
