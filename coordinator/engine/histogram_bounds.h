// Upper bounds of the buckets of our histograms. Those of vLLM's names are
// vLLM's (vllm/v1/metrics/buckets.py), so that one query adds up a fleet of
// both; ours have them and finer ones, since a CPU or a small model answers
// faster than vLLM's first bound.
#pragma once

#include <array>
#include <cstddef>

#include "absl/types/span.h"
#include "common/base/histogram.h"

namespace moebius {

// Seconds.
inline constexpr std::array kFirstTokenBounds = {
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1,  0.25,  0.5,   0.75,
    1.0,   2.5,   5.0,  7.5,  10.0, 20.0, 40.0, 80.0, 160.0, 640.0, 2560.0};
inline constexpr std::array kInterTokenBounds = {
    0.0005, 0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1,  0.15, 0.2, 0.3,
    0.4,    0.5,   0.75,  1.0,   2.5,  5.0,   7.5,  10.0,  20.0, 40.0, 80.0};
inline constexpr std::array kRequestBounds = {
    0.01, 0.03, 0.1,   0.3,   0.5,   0.8,   1.0,    1.5,
    2.0,  2.5,  5.0,   10.0,  15.0,  20.0,  30.0,   40.0,
    50.0, 60.0, 120.0, 240.0, 480.0, 960.0, 1920.0, 7680.0};
// How many of ours are in front of vLLM's.
inline constexpr size_t kFinerInterTokenBounds = 4;
inline constexpr size_t kFinerRequestBounds = 3;

// Of a step, and of the pause of a switch.
inline constexpr std::array kStepBounds = {
    0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05,
    0.1,    0.2,    0.5,   1.0,   2.0,   5.0,  10.0, 60.0};

// Tokens of a request: 1, 2, 5, 10 ... up to what the context holds.
inline constexpr std::array kTokenBounds = {
    1.0,       2.0,       5.0,       10.0,      20.0,     50.0,
    100.0,     200.0,     500.0,     1000.0,    2000.0,   5000.0,
    10000.0,   20000.0,   50000.0,   100000.0,  200000.0, 500000.0,
    1000000.0, 2000000.0, 5000000.0, 10000000.0};

inline absl::Span<const double> TokenBounds(int max_model_len) {
  const absl::Span<const double> all = kTokenBounds;
  return all.first(Histogram::BucketOf(all, max_model_len + 0.5));
}

static_assert(kFirstTokenBounds.size() <= kMaxHistogramBounds);
static_assert(kInterTokenBounds.size() <= kMaxHistogramBounds);
static_assert(kRequestBounds.size() <= kMaxHistogramBounds);
static_assert(kStepBounds.size() <= kMaxHistogramBounds);
static_assert(kTokenBounds.size() <= kMaxHistogramBounds);

}  // namespace moebius
