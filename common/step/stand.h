// Where a worker stands when the group is put together again, and what is left
// of a switch, as plain values.
#pragma once

#include <cstdint>
#include <vector>

#include "common/base/ids.h"
#include "common/layout/experts_state.h"
#include "common/layout/kv_plan.h"
#include "common/step/step_plan.h"

namespace moebius {

// Where a worker's memory stands.
struct Stand {
  StepId last_executed;
  uint64_t barriers = 0;  // it waits for none up to this number any more
  // Its record of the last switch that it began, and the side on which all
  // layers lay before it; of no switch, where they were loaded.
  Epoch switch_epoch;
  Side side = Side::kLow;
  int layers_done = 0;
  int waves_done = 0;
  // Weights are in its memory. False: the memory is new.
  bool loaded = false;
  uint64_t weight_checksum = 0;  // Resume.weight_checksum, if loaded
  // When it was last told to go on with no switch to finish, every one up to
  // this was over. So memory that is new since is not of a switch before.
  Epoch epochs_over;
  friend bool operator==(const Stand&, const Stand&) = default;
};

// A sequence as a worker holds it, with the pages of its own rank.
struct HeldSequence {
  uint32_t slot = 0;
  RequestId request;
  uint32_t computed = 0;      // positions whose KV is there
  int num_kv = 0;             // KV heads held here
  std::vector<PageId> pages;  // [block][num_kv]
  friend bool operator==(const HeldSequence&, const HeldSequence&) = default;
};

// A sequence as the coordinator knows it, in place of what a worker holds.
struct RestoredSequence {
  Admission admission;
  KvTable table;          // of admission.slot; may have no block yet
  uint32_t computed = 0;  // positions whose KV is there
  friend bool operator==(const RestoredSequence&,
                         const RestoredSequence&) = default;
};

// What is left of a committed switch beside the experts, whose ExpertsState
// says it of them: waves from these on. The one in flight is done again.
struct SwitchTail {
  Epoch epoch;
  int waves_done = 0;
  KvPlan kv;
};

}  // namespace moebius
