// Mixture of experts: routing, grouping, and the experts themselves.
//
// Exactness: see gemm.h. With slice_rows independent of the number of ranks,
// the integers that EP ranks (whole experts) and TP ranks (slices of every
// expert) accumulate have the same sum.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/types/span.h"
#include "kernels/formats.h"
#include "kernels/route.h"
#include "kernels/thread_pool.h"

namespace moebius {

// For each row of `logits` [rows][experts]: softmax, then the top_k experts in
// descending order of probability, ties to the lowest id.
//   experts [rows][top_k] ids;  weights [rows][top_k] probabilities, divided by
//   their sum when `renormalize`
// A NaN logit counts as -infinity; a row with nothing finite chooses the lowest
// ids with equal weights.
// REQUIRES: 1 <= top_k <= min(experts, kMaxExpertsPerToken).
void RouteTopK(ConstRows logits, int top_k, bool renormalize,
               absl::Span<int32_t> experts, absl::Span<float> weights,
               ThreadPool* pool);

// Which rows go to which of a rank's experts. Keeps its memory between calls.
struct ExpertGroups {
  std::vector<int32_t> offsets;  // [experts + 1]; group e is [offsets[e],
                                 // offsets[e + 1]) of the next two
  std::vector<int32_t> rows;     // ascending within a group
  std::vector<float> weights;
  int num_experts() const { return static_cast<int>(offsets.size()) - 1; }
};

// Groups the assignments (row, slot) whose expert is in
// [first_expert, first_expert + num_experts); others are left out.
//   experts, weights [rows][top_k]
void GroupByExpert(absl::Span<const int32_t> experts,
                   absl::Span<const float> weights, int top_k, int first_expert,
                   int num_experts, ExpertGroups* groups);

// One group of all rows with weight 1: a dense MLP is a single expert.
void GroupAllRows(int num_rows, ExpertGroups* groups);

// Room for intermediate results; grows when needed, never shrinks.
class ExpertWorkspace {
 public:
  float* Reserve(size_t num_elements);

 private:
  std::vector<float> buffer_;
};

// For each group e and each row r of it, with weight w:
//   h = silu(x_r gate_e^T) * (x_r up_e^T) * w;   acc_r += fixed(h down_e^T)
// with biases and another activation as the experts say (kernels/experts.h),
// where the last product is cut into slices of slice_rows of the intermediate
// dimension as in RowParallelGemm. experts[e] is the expert of group e; all
// have the same sizes. The integers do not depend on how many pieces an expert
// lies in, rows of zeros add nothing, and an expert of no rows or no pieces is
// not read.
// REQUIRES: experts.size() == groups.num_experts(); hidden == x.cols ==
//   acc.cols; slice_rows a multiple of 16 that divides the rows of a piece;
//   rows of the groups inside x and acc.
void ExpertsFfn(ConstRows x, absl::Span<const ExpertView> experts,
                const ExpertGroups& groups, int slice_rows, FixedRows acc,
                ExpertWorkspace* workspace, ThreadPool* pool);

}  // namespace moebius
