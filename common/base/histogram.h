// Counts of values in buckets, as Prometheus reads them: a plain value, and one
// that several threads add to.
#pragma once

#include <algorithm>
#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>

#include "absl/types/span.h"

namespace moebius {

inline constexpr size_t kMaxHistogramBounds = 24;

// Histogram
//
// `bounds` are upper bounds, ascending, and outlive it: at most
// kMaxHistogramBounds of them. What is above the last has a count of its own.
class Histogram {
 public:
  Histogram() = default;
  explicit Histogram(absl::Span<const double> bounds) : bounds_(bounds) {}

  void Add(double value) {
    ++counts_[BucketOf(bounds_, value)];
    sum_ += value;
  }

  absl::Span<const double> bounds() const { return bounds_; }
  double sum() const { return sum_; }
  uint64_t count() const { return UpTo(bounds_.size()); }
  // How many values are at most `bound`, which is one of the bounds.
  uint64_t AtMost(double bound) const { return UpTo(BucketOf(bounds_, bound)); }

  static size_t BucketOf(absl::Span<const double> bounds, double value) {
    return std::lower_bound(bounds.begin(), bounds.end(), value) -
           bounds.begin();
  }

 private:
  friend class SharedHistogram;

  // In the buckets up to and with this one.
  uint64_t UpTo(size_t bucket) const {
    uint64_t sum = 0;
    for (size_t i = 0; i <= bucket; ++i) sum += counts_[i];
    return sum;
  }

  absl::Span<const double> bounds_;
  std::array<uint64_t, kMaxHistogramBounds + 1> counts_{};
  double sum_ = 0;
};

// SharedHistogram
//
// Of durations. Threading: thread-safe, lock-free; what is read while others
// add may lack their last few.
class SharedHistogram {
 public:
  explicit SharedHistogram(absl::Span<const double> bounds) : bounds_(bounds) {}

  void Add(double seconds) {
    counts_[Histogram::BucketOf(bounds_, seconds)].fetch_add(
        1, std::memory_order_relaxed);
    sum_ns_.fetch_add(static_cast<uint64_t>(std::max(0.0, seconds) * 1e9),
                      std::memory_order_relaxed);
  }

  Histogram Get() const {
    Histogram out(bounds_);
    for (size_t i = 0; i < counts_.size(); ++i) {
      out.counts_[i] = counts_[i].load(std::memory_order_relaxed);
    }
    out.sum_ = sum_ns_.load(std::memory_order_relaxed) * 1e-9;
    return out;
  }

 private:
  const absl::Span<const double> bounds_;
  std::array<std::atomic<uint64_t>, kMaxHistogramBounds + 1> counts_{};
  std::atomic<uint64_t> sum_ns_{0};
};

}  // namespace moebius
