// The rows of a step: positions and query chunks, from a checked batch. Pure.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "common/base/ids.h"
#include "kernels/attention.h"

namespace moebius {

struct ForwardBatch;

// Keeps its memory between steps.
class StepRows {
 public:
  // Takes over a batch. kInvalidArgument, naming row or sequence, unless rows
  // are at most max_rows, below max_positions, and grouped by sequence at
  // consecutive positions; logit_rows ascend within the rows; and in EP
  // rows_of_rank agrees. Tokens and page ids are not looked at.
  absl::Status Build(const ForwardBatch& batch, int num_ranks, Rank rank,
                     int max_rows, int max_positions, int num_kv_heads);

  // Keeps the given rows, which become rows 0, 1, ...
  // REQUIRES: ascending, inside the rows.
  void KeepOnly(absl::Span<const uint32_t> rows);

  int num_rows() const { return static_cast<int>(positions_.size()); }
  absl::Span<const int32_t> positions() const { return positions_; }
  // Pages point into the batch.
  absl::Span<const QueryChunk> chunks() const { return chunks_; }

 private:
  std::vector<int32_t> positions_;
  std::vector<QueryChunk> chunks_;
  std::vector<QueryChunk> kept_;
  std::vector<bool> seen_;
};

}  // namespace moebius
