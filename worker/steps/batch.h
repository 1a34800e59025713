// The work of one step on one rank, as one value.
#pragma once

#include <cstdint>
#include <vector>

#include "common/base/ids.h"
#include "common/layout/experts_state.h"
#include "common/step/step_plan.h"
#include "common/step/step_result.h"

namespace moebius {

// Batch
//
// What a plan that was checked means for this rank. Nobody looks at any of it
// again: pages are in the pool, slots there, rows within the budget, and every
// token known by the time that the step runs.
//
// Applied to the device's slots in this order: released, admissions, page rows.
struct Batch {
  // Rows of one sequence: its tokens [position, position + num_rows) are rows
  // [first_row, first_row + num_rows) of its group's.
  struct Chunk {
    uint32_t slot = 0;
    uint32_t first_row = 0;
    uint32_t num_rows = 0;
    uint32_t position = 0;
    bool sample = false;  // draw the token behind them
    friend bool operator==(const Chunk&, const Chunk&) = default;
  };

  // Rows of another attention group, counted there.
  struct Elsewhere {
    int group = 0;
    Chunk chunk;
    friend bool operator==(const Elsewhere&, const Elsewhere&) = default;
  };

  StepId step;
  StepLayout layout;
  std::vector<uint32_t> released;
  std::vector<Admission> admissions;  // without those that are refused
  std::vector<PageRow> page_rows;     // this rank's
  // Of the sequences of this rank's group, maybe none.
  std::vector<Chunk> chunks;
  std::vector<Elsewhere> elsewhere;
  // [num_groups]: rows, and those whose logits are wanted.
  std::vector<int> rows_of_group;
  std::vector<int> wanted_of_group;
  // Sequences whose work was passed over, for the result.
  std::vector<RefusedSequence> refused;

  uint32_t num_rows() const {
    return chunks.empty() ? 0
                          : chunks.back().first_row + chunks.back().num_rows;
  }
};

}  // namespace moebius
