// Puts passes together on the CPU.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "absl/types/span.h"
#include "common/base/ids.h"
#include "common/layout/kv_plan.h"
#include "worker/model/pass.h"

namespace moebius {

// PassBuilder
//
// Begin(), then for each sequence AddChunk() and Want() of its rows in order,
// then Build(). AddOthers() counts what the other groups have.
// Keeps its memory between passes. Threading: thread-compatible.
class PassBuilder {
 public:
  // REQUIRES: layout.attention.divides(num_ranks).
  void Begin(const StepLayout& layout, int num_ranks, Rank rank);

  // The next rows: `tokens` of one sequence, from `first_position` on. Both
  // spans outlive the pass; `pages` as in QueryChunk.
  void AddChunk(absl::Span<const int32_t> tokens, int first_position,
                absl::Span<const PageId> pages);

  // The logits of row `row` of the last chunk are wanted. REQUIRES: above the
  // row of that chunk that was wanted before. `wanted.result` is ours.
  void Want(int row, const SampleRow& wanted);

  // Rows of another group.
  void AddOthers(int group, int rows, int wanted);

  // The pass, good until Begin().
  Pass<Cpu> Build();

  // What the wanted rows gave, in the order of Want(). Of the tp_size ranks of
  // a group the p-th has those of rows p, p + tp_size ... alone.
  absl::Span<const SampledRow> results() const { return results_; }

 private:
  int group_ = 0;
  StepLayout layout_;
  std::vector<int> rows_of_group_, wanted_of_group_;
  std::vector<int32_t> tokens_, positions_;
  std::vector<QueryChunk> chunks_;
  std::vector<int32_t> wanted_rows_, wanted_positions_;
  std::vector<QueryChunk> wanted_chunks_;
  int last_chunk_ = -1;  // whose rows the last of these are
  std::vector<SampleRow> samples_;
  std::vector<SampledRow> results_;
};

}  // namespace moebius
