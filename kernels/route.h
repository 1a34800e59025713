// Which experts a row goes to.
#pragma once

#include <cstdint>

#include "kernels/formats.h"

namespace moebius {

inline constexpr int kMaxExpertsPerToken = 64;

struct RouterShape {
  int top_k = 0;
  bool renormalize = false;  // weights are divided by their sum
};

// [rows][top_k] each: ids of experts, and their weights.
template <class D>
struct Assignments {
  int32_t* experts = nullptr;
  float* weights = nullptr;
  int rows = 0;
  int top_k = 0;
  Assignments RowRange(int begin, int count) const {
    const int64_t at = int64_t{begin} * top_k;
    return {experts + at, weights + at, count, top_k};
  }
};

// Experts [first, first + count), those that a rank holds something of.
struct ExpertRange {
  int first = 0;
  int count = 0;
};

// Which rows go to which of a rank's experts, and whatever else the operators
// of a device keep between router and experts. Opaque, kept between steps.
template <class D>
class Routing;

// For each row: softmax of x * router^T and the router's bias, then the top_k
// experts in descending order of probability, ties to the lowest id, with these
// probabilities. A NaN logit counts as -infinity; a row with nothing finite
// chooses the lowest ids with equal weights. REQUIRES: 1 <= top_k <=
// min(experts, kMaxExpertsPerToken); `out` has a row
//   for each of x.
void Route(const Cpu& device, const RouterShape& shape, ConstRows x,
           const PackedMatrix& router, Routing<Cpu>& routing,
           const Assignments<Cpu>& out);

// Groups the assignments to experts of `range`; others are left out.
void Group(const Cpu& device, const Assignments<Cpu>& assignments,
           ExpertRange range, Routing<Cpu>& routing);

// One group of all rows with weight 1: a dense MLP is a single expert.
void GroupAllRows(const Cpu& device, int num_rows, Routing<Cpu>& routing);

// The same with weight sigmoid(gate . x_r) of row r: an expert that rows share
// (Qwen2-MoE). REQUIRES: gate has x.cols elements.
void GroupGatedRows(const Cpu& device, ConstRows x, const float* gate,
                    Routing<Cpu>& routing);

}  // namespace moebius
