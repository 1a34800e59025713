// Numbers and names that nobody else draws.
#pragma once

#include <atomic>
#include <cstdint>
#include <random>
#include <string>

#include "absl/strings/str_format.h"
#include "common/base/split_mix.h"

namespace moebius {

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
    return absl::StrFormat("%016x%016x", SplitMixAt(base_, n),
                           SplitMixAt(~base_, n));
  }
  uint64_t NextNumber() {
    return SplitMixAt(base_ ^ SplitMixAt(Count(), 0), 0);
  }

 private:
  uint64_t Count() { return count_.fetch_add(1, std::memory_order_relaxed); }

  uint64_t base_ = 0;
  std::atomic<uint64_t> count_{0};
};

}  // namespace moebius
