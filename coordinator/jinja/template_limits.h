// Named maxima of the template engine, and the account of work they bound.
//
// Templates come with a checkpoint and their data with a request: neither may
// take more time, memory or stack than these allow.
#pragma once

#include <cstddef>

#include "absl/status/status.h"

namespace moebius::jinja {

// Source text.
inline constexpr size_t kMaxTemplateBytes = 1 << 20;

// Brackets and blocks open at one place of the source (a bracket in an
// expression counts twice).
inline constexpr int kMaxNesting = 200;

// Height of one expression's tree: "a + b + c" is 2 high.
inline constexpr int kMaxExpressionHeight = 200;

// Statements, expressions and macro calls under evaluation at one time.
inline constexpr int kMaxEvaluationDepth = 600;

// Lists and dicts inside one another, in data as in values made.
inline constexpr int kMaxValueDepth = 200;

// Items of one range().
inline constexpr size_t kMaxRangeItems = 100'000;

// What one rendering writes.
inline constexpr size_t kMaxOutputBytes = 16 << 20;

// Work of one rendering. A node evaluated is one step, and so is an item
// looked at, and so are kBytesPerStep bytes made or scanned (a string costs
// two more). Memory made in one rendering is therefore bounded too, by about
// kMaxSteps * kBytesPerStep: 244 MiB.
inline constexpr size_t kMaxSteps = 8'000'000;
inline constexpr size_t kBytesPerStep = 32;

// Counts one level of nesting for as long as it lives.
class Nested {
 public:
  explicit Nested(int* depth) : depth_(depth) { ++*depth_; }
  ~Nested() { --*depth_; }
  Nested(const Nested&) = delete;

 private:
  int* depth_;
};

// Budget
//
// The steps that a rendering has left. Threading: thread-compatible.
class Budget {
 public:
  // Takes `steps`. Errors: kInvalidArgument when they are not left; nothing
  // is left from then on.
  absl::Status Charge(size_t steps) {
    if (steps > left_) {
      left_ = 0;
      return Exhausted();
    }
    left_ -= steps;
    return absl::OkStatus();
  }

  // Takes what making or scanning `bytes` costs.
  absl::Status ChargeBytes(size_t bytes) {
    return Charge(bytes / kBytesPerStep + 2);
  }

 private:
  static absl::Status Exhausted();

  size_t left_ = kMaxSteps;
};

}  // namespace moebius::jinja
