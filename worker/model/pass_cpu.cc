#include "worker/model/pass_cpu.h"

#include "common/base/check.h"

namespace moebius {

void PassBuilder::Begin(const StepLayout& layout, int num_ranks, Rank rank) {
  layout_ = layout;
  CHECK(layout.attention.divides(num_ranks));
  group_ = layout.attention.group_of(rank);
  const int num_groups = layout.attention.num_groups(num_ranks);
  rows_of_group_.assign(static_cast<size_t>(num_groups), 0);
  wanted_of_group_.assign(static_cast<size_t>(num_groups), 0);
  tokens_.clear();
  positions_.clear();
  chunks_.clear();
  wanted_rows_.clear();
  wanted_positions_.clear();
  wanted_chunks_.clear();
  last_chunk_ = -1;
  samples_.clear();
  results_.clear();
}

void PassBuilder::AddChunk(absl::Span<const int32_t> tokens, int first_position,
                           absl::Span<const PageId> pages) {
  chunks_.push_back({static_cast<int>(tokens_.size()),
                     static_cast<int>(tokens.size()), first_position, pages});
  tokens_.insert(tokens_.end(), tokens.begin(), tokens.end());
  for (size_t i = 0; i < tokens.size(); ++i) {
    positions_.push_back(first_position + static_cast<int>(i));
  }
  rows_of_group_[group_] += static_cast<int>(tokens.size());
}

void PassBuilder::Want(int row, const SampleRow& wanted) {
  const QueryChunk& chunk = chunks_.back();
  CHECK(0 <= row && row < chunk.num_rows);
  const int at = chunk.first_row + row;
  CHECK(wanted_rows_.empty() || wanted_rows_.back() < at);
  const int chunk_index = static_cast<int>(chunks_.size()) - 1;
  if (last_chunk_ == chunk_index && wanted_rows_.back() == at - 1) {
    ++wanted_chunks_.back().num_rows;
  } else {
    wanted_chunks_.push_back({static_cast<int>(wanted_rows_.size()), 1,
                              chunk.first_position + row, chunk.pages});
  }
  last_chunk_ = chunk_index;
  wanted_rows_.push_back(at);
  wanted_positions_.push_back(chunk.first_position + row);
  samples_.push_back(wanted);
  ++wanted_of_group_[group_];
}

void PassBuilder::AddOthers(int group, int rows, int wanted) {
  CHECK(group != group_);
  rows_of_group_[group] += rows;
  wanted_of_group_[group] += wanted;
}

Pass<Cpu> PassBuilder::Build() {
  results_.assign(samples_.size(), SampledRow{});
  for (size_t j = 0; j < samples_.size(); ++j) {
    samples_[j].result = &results_[j];
  }
  const int wanted = static_cast<int>(samples_.size());
  return {.layout = layout_,
          .tokens = tokens_.data(),
          .rows = {static_cast<int>(tokens_.size()), positions_, chunks_},
          .wanted_rows = wanted_rows_.data(),
          .wanted = {wanted, wanted_positions_, wanted_chunks_},
          .samples = {samples_.data(), 1, wanted},
          .rows_of_group = rows_of_group_,
          .wanted_of_group = wanted_of_group_};
}

}  // namespace moebius
