#include "worker/model/step_rows.h"

#include "absl/strings/str_cat.h"
#include "common/base/check.h"
#include "common/base/status_macros.h"
#include "worker/model/forward.h"

namespace moebius {
namespace {

absl::Status Bad(const std::string& what) {
  return absl::InvalidArgumentError(absl::StrCat("step: ", what));
}

absl::Status CheckRowsOfRank(const ForwardBatch& batch, int num_ranks,
                             Rank rank, int max_rows) {
  if (batch.rows_of_rank.size() != static_cast<size_t>(num_ranks)) {
    return Bad(absl::StrCat("rows_of_rank has ", batch.rows_of_rank.size(),
                            " entries for ", num_ranks, " ranks"));
  }
  int64_t total = 0;
  for (const int rows : batch.rows_of_rank) {
    if (rows < 0) return Bad(absl::StrCat("a rank has ", rows, " rows"));
    total += rows;
  }
  if (total > max_rows) {
    return Bad(absl::StrCat(total, " rows; allowed: at most ", max_rows));
  }
  if (batch.rows_of_rank[rank] != static_cast<int>(batch.tokens.size())) {
    return Bad(absl::StrCat(batch.tokens.size(), " rows, but rows_of_rank[",
                            rank, "] is ", batch.rows_of_rank[rank]));
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status StepRows::Build(const ForwardBatch& batch, int num_ranks,
                             Rank rank, int max_rows, int max_positions,
                             int num_kv_heads) {
  const size_t rows = batch.tokens.size();
  if (rows > static_cast<size_t>(max_rows)) {
    return Bad(absl::StrCat(rows, " rows; allowed: at most ", max_rows));
  }
  if (batch.positions.size() != rows || batch.row_sequence.size() != rows) {
    return Bad(absl::StrCat(rows, " tokens, ", batch.positions.size(),
                            " positions, ", batch.row_sequence.size(),
                            " sequences of rows"));
  }
  if (batch.layout.attention.is_ep()) {
    RETURN_IF_ERROR(CheckRowsOfRank(batch, num_ranks, rank, max_rows));
  }
  positions_.clear();
  chunks_.clear();
  seen_.assign(batch.sequences.size(), false);
  for (size_t row = 0; row < rows; ++row) {
    const uint32_t sequence = batch.row_sequence[row];
    const uint32_t position = batch.positions[row];
    if (sequence >= batch.sequences.size()) {
      return Bad(absl::StrCat("row ", row, " is of sequence ", sequence, " of ",
                              batch.sequences.size()));
    }
    if (position >= static_cast<uint32_t>(max_positions)) {
      return Bad(absl::StrCat("row ", row, " is at position ", position,
                              "; allowed: below ", max_positions));
    }
    if (row > 0 && batch.row_sequence[row - 1] == sequence) {
      if (position != batch.positions[row - 1] + 1) {
        return Bad(absl::StrCat("row ", row, " is at position ", position,
                                ", the one before it at ",
                                batch.positions[row - 1]));
      }
      ++chunks_.back().num_rows;
    } else {
      if (seen_[sequence]) {
        return Bad(
            absl::StrCat("rows of sequence ", sequence, " are not adjacent"));
      }
      seen_[sequence] = true;
      const SequencePages& pages = batch.sequences[sequence];
      if (pages.num_blocks < 0) {
        return Bad(absl::StrCat("sequence ", sequence, " has ",
                                pages.num_blocks, " blocks"));
      }
      chunks_.push_back(
          {static_cast<int>(row), 1, static_cast<int>(position),
           absl::MakeConstSpan(pages.pages,
                               static_cast<size_t>(pages.num_blocks) *
                                   static_cast<size_t>(num_kv_heads))});
    }
    positions_.push_back(static_cast<int32_t>(position));
  }
  for (size_t j = 0; j < batch.logit_rows.size(); ++j) {
    if (batch.logit_rows[j] >= rows ||
        (j > 0 && batch.logit_rows[j] <= batch.logit_rows[j - 1])) {
      return Bad(absl::StrCat("logit row ", batch.logit_rows[j], " of ", rows,
                              " rows is out of range or order"));
    }
  }
  return absl::OkStatus();
}

void StepRows::KeepOnly(absl::Span<const uint32_t> rows) {
  kept_.clear();
  size_t chunk = 0;
  int last_row = -2;
  for (size_t j = 0; j < rows.size(); ++j) {
    const int row = static_cast<int>(rows[j]);
    CHECK(row < num_rows() && static_cast<int>(j) <= row);
    const size_t before = chunk;
    while (row >= chunks_[chunk].first_row + chunks_[chunk].num_rows) ++chunk;
    if (!kept_.empty() && chunk == before && row == last_row + 1) {
      ++kept_.back().num_rows;
    } else {
      kept_.push_back(
          {static_cast<int>(j), 1, positions_[row], chunks_[chunk].pages});
    }
    positions_[j] = positions_[row];
    last_row = row;
  }
  positions_.resize(rows.size());
  chunks_.swap(kept_);
}

}  // namespace moebius
