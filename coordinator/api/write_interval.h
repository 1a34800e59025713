// How often tokens are written to their streams.
#pragma once

#include <algorithm>
#include <chrono>

namespace moebius {

// The time from one round of writes to the next. A write costs a system call
// here and a wake-up of the client, and on a small machine both come out of the
// workers' cores: so a round that takes `cost` of a core may start only every
// 25 times that, 4 % of a core for writing, but no stream waits longer than 8
// ms for it. Steps of a large model are further apart than this, and nothing
// waits.
//
// `least` is the configured interval: 0 writes each token at once.
inline std::chrono::nanoseconds WriteInterval(std::chrono::nanoseconds least,
                                              std::chrono::nanoseconds cost) {
  constexpr int kRoundsPerCost = 25;
  constexpr std::chrono::nanoseconds kMost = std::chrono::milliseconds(8);
  if (least == least.zero()) return least;
  return std::max(least, std::min(kRoundsPerCost * cost, kMost));
}

}  // namespace moebius
