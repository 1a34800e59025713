// Numbers and names that nobody else draws.
#pragma once

#include <atomic>
#include <cstdint>
#include <random>
#include <string>

#include "absl/strings/str_format.h"

namespace moebius {

// SplitMix64 (Steele, Lea, Flood 2014): a bijection that scrambles a counter.
inline uint64_t ScrambleCounter(uint64_t x) {
  x += 0x9e3779b97f4a7c15;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9;
  x = (x ^ (x >> 27)) * 0x94d049bb133111eb;
  return x ^ (x >> 31);
}

// Begins at a place that the system's generator drew. Thread-safe.
class RandomIds {
 public:
  RandomIds() {
    std::random_device device;
    base_ = (uint64_t{device()} << 32) | device();
  }

  // 32 hexadecimal digits.
  std::string Next() {
    const uint64_t n = Count();
    return absl::StrFormat("%016x%016x", ScrambleCounter(base_ + n),
                           ScrambleCounter(~base_ + n));
  }
  uint64_t NextNumber() {
    return ScrambleCounter(base_ ^ ScrambleCounter(Count()));
  }

 private:
  uint64_t Count() { return count_.fetch_add(1, std::memory_order_relaxed); }

  uint64_t base_ = 0;
  std::atomic<uint64_t> count_{0};
};

}  // namespace moebius
