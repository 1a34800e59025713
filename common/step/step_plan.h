// What one step computes, as plain values: the plan that every rank is given.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/container/inlined_vector.h"
#include "common/base/ids.h"
#include "common/layout/experts_state.h"
#include "common/layout/kv_plan.h"
#include "common/step/sampling_params.h"

namespace moebius {

// A sequence enters (or enters again after preemption) slot `slot`.
struct Admission {
  uint32_t slot = 0;
  RequestId request;
  uint32_t num_prompt_tokens = 0;  // tokens beyond it were generated
  std::vector<int32_t> tokens;     // all known tokens
  SamplingParams sampling;
  friend bool operator==(const Admission&, const Admission&) = default;
};

// New pages of a sequence on one rank: block `block` of every head held there.
// A step under tensor parallelism may hold a thousand, so as many pages as a
// rank's share of heads usually is need no memory of their own.
struct PageRow {
  uint32_t slot = 0;
  uint32_t block = 0;
  Rank rank = 0;
  absl::InlinedVector<PageId, 8> pages;  // [KV heads held on rank]
  friend bool operator==(const PageRow&, const PageRow&) = default;
};

// Work of one sequence in a step: tokens [position, position + num_tokens).
struct WorkItem {
  uint32_t slot = 0;
  uint32_t position = 0;
  uint32_t num_tokens = 0;
  uint8_t group = 0;    // of the attention layout: EP the rank, TP 0
  bool sample = false;  // draw the token at position + num_tokens
  friend bool operator==(const WorkItem&, const WorkItem&) = default;
};

// One forward pass of the group. The same plan goes to every worker. Applied
// in this order: released slots, admissions, page rows, work. The plan of a
// step may be executed again with the same result.
// A decode item whose token is not in `tokens` yet takes the one that the
// worker sampled in an earlier step.
struct StepPlan {
  StepId step;
  StepLayout layout;
  std::vector<uint32_t> released;
  std::vector<Admission> admissions;
  std::vector<PageRow> page_rows;
  std::vector<WorkItem> items;
  friend bool operator==(const StepPlan&, const StepPlan&) = default;
};

}  // namespace moebius
