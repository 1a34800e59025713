#include "worker/steps/sequence_table.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "common/base/status_macros.h"
#include "common/step/sequence_check.h"

namespace moebius {
namespace {

absl::Status Disagree(uint32_t slot, absl::string_view what) {
  return absl::InvalidArgumentError(absl::StrCat("slot ", slot, ": ", what));
}

void Clear(Sequence& sequence) {
  sequence.live = false;
  sequence.tokens.clear();
  sequence.history.Clear();
  sequence.num_kv = 0;
  sequence.pages.clear();
  sequence.computed = 0;
  sequence.refused.clear();
}

}  // namespace

absl::Status SequenceTable::CheckPages(absl::Span<const PageId> pages,
                                       uint32_t slot) const {
  for (PageId page : pages) {
    if (page >= num_pages_) {
      return Disagree(
          slot, absl::StrCat("page ", page, " of a pool of ", num_pages_));
    }
  }
  return absl::OkStatus();
}

absl::Status SequenceTable::Admit(const Admission& admission) {
  if (admission.slot >= sequences_.size()) {
    return Disagree(admission.slot,
                    absl::StrCat("there are ", sequences_.size(), " slots"));
  }
  Sequence& sequence = sequences_[admission.slot];
  Clear(sequence);
  sequence.live = true;
  sequence.request = admission.request;
  const absl::Status good =
      CheckSequence(admission.tokens, admission.sampling, vocab_size_);
  if (!good.ok()) {
    sequence.refused = std::string(good.message());
    return absl::OkStatus();
  }
  sequence.num_prompt_tokens = admission.num_prompt_tokens;
  sequence.sampling = admission.sampling;
  sequence.tokens = admission.tokens;
  if (NeedsHistory(sequence.sampling)) {
    const auto tokens = absl::MakeConstSpan(sequence.tokens);
    sequence.history.AddPrompt(tokens.first(sequence.num_prompt_tokens));
    for (int32_t token : tokens.subspan(sequence.num_prompt_tokens)) {
      sequence.history.AddOutput(token);
    }
  }
  return absl::OkStatus();
}

absl::Status SequenceTable::AddRow(const PageRow& row) {
  if (Find(row.slot) == nullptr) {
    return Disagree(row.slot, "pages for a sequence that is not here");
  }
  RETURN_IF_ERROR(CheckPages(row.pages, row.slot));
  Sequence& sequence = sequences_[row.slot];
  const int num_kv = static_cast<int>(row.pages.size());
  if (num_kv == 0 || (sequence.num_kv != 0 && sequence.num_kv != num_kv) ||
      row.block > static_cast<uint32_t>(sequence.num_blocks())) {
    return Disagree(row.slot, "page row out of order");
  }
  sequence.num_kv = num_kv;
  const size_t offset = size_t{row.block} * num_kv;
  sequence.pages.resize(std::max(sequence.pages.size(), offset + num_kv));
  std::copy(row.pages.begin(), row.pages.end(),
            sequence.pages.begin() + offset);
  return absl::OkStatus();
}

absl::Status SequenceTable::Apply(const StepPlan& plan) {
  for (uint32_t slot : plan.released) {
    if (slot >= sequences_.size()) return Disagree(slot, "released");
    Clear(sequences_[slot]);
  }
  for (const Admission& admission : plan.admissions) {
    RETURN_IF_ERROR(Admit(admission));
  }
  for (const PageRow& row : plan.page_rows) {
    if (row.rank == rank_) RETURN_IF_ERROR(AddRow(row));
  }
  return absl::OkStatus();
}

absl::Status SequenceTable::CheckItem(const WorkItem& item, int num_kv) const {
  const Sequence* sequence = Find(item.slot);
  if (sequence == nullptr) {
    return Disagree(item.slot, "work for a sequence that is not here");
  }
  const uint64_t end = uint64_t{item.position} + item.num_tokens;
  if (end > sequence->tokens.size()) {
    return Disagree(item.slot,
                    absl::StrCat("work up to token ", end, " but only ",
                                 sequence->tokens.size(), " are known"));
  }
  if (num_kv > 0 && (sequence->num_kv != num_kv ||
                     end > uint64_t{kPageTokens} * sequence->num_blocks())) {
    return Disagree(
        item.slot,
        absl::StrCat("work up to token ", end, " with ", sequence->num_blocks(),
                     " blocks of ", sequence->num_kv, " heads"));
  }
  return absl::OkStatus();
}

void SequenceTable::NoteDone(const StepPlan& plan) {
  for (const WorkItem& item : plan.items) {
    if (IsRefused(item.slot)) continue;
    sequences_[item.slot].computed = item.position + item.num_tokens;
  }
}

std::vector<HeldSequence> SequenceTable::Held() const {
  std::vector<HeldSequence> held;
  for (uint32_t slot = 0; slot < sequences_.size(); ++slot) {
    const Sequence& sequence = sequences_[slot];
    if (!sequence.live) continue;
    held.push_back({slot, sequence.request, sequence.computed, sequence.num_kv,
                    sequence.pages});
  }
  return held;
}

void SequenceTable::TruncateTo(uint32_t slot, uint32_t position) {
  if (Find(slot) == nullptr || IsRefused(slot)) return;
  Sequence& sequence = sequences_[slot];
  while (sequence.tokens.size() > position) {
    if (NeedsHistory(sequence.sampling)) {
      sequence.history.RemoveOutput(sequence.tokens.back());
    }
    sequence.tokens.pop_back();
  }
}

absl::Status SequenceTable::Append(uint32_t slot, uint32_t position,
                                   int32_t token) {
  if (Find(slot) == nullptr) {
    return Disagree(slot, "a token for a sequence that is not here");
  }
  Sequence& sequence = sequences_[slot];
  if (position != sequence.tokens.size() || token < 0 || token >= vocab_size_) {
    return Disagree(slot,
                    absl::StrCat("token ", token, " for position ", position,
                                 " after ", sequence.tokens.size(), " tokens"));
  }
  sequence.tokens.push_back(token);
  if (NeedsHistory(sequence.sampling)) sequence.history.AddOutput(token);
  return absl::OkStatus();
}

absl::Status SequenceTable::CheckTables(
    absl::Span<const KvTable> tables) const {
  for (const KvTable& table : tables) {
    if (Find(table.slot) == nullptr) {
      return Disagree(table.slot, "a table for a sequence that is not here");
    }
    for (const RankTable& rank : table.tables) {
      if (rank.rank == rank_)
        RETURN_IF_ERROR(CheckPages(rank.pages, table.slot));
    }
  }
  return absl::OkStatus();
}

void SequenceTable::Reset() {
  for (Sequence& sequence : sequences_) Clear(sequence);
}

absl::Status SequenceTable::Put(const RestoredSequence& sequence) {
  RETURN_IF_ERROR(Admit(sequence.admission));
  RETURN_IF_ERROR(CheckTables(absl::MakeConstSpan(&sequence.table, 1)));
  SetPages(sequence.table);
  sequences_[sequence.admission.slot].computed = sequence.computed;
  return absl::OkStatus();
}

// This rank's part of a table that was checked.
void SequenceTable::SetPages(const KvTable& table) {
  for (const RankTable& rank : table.tables) {
    if (rank.rank != rank_) continue;
    sequences_[table.slot].num_kv = rank.num_kv;
    sequences_[table.slot].pages = rank.pages;
  }
}

absl::Status SequenceTable::ReplaceTables(absl::Span<const KvTable> tables) {
  RETURN_IF_ERROR(CheckTables(tables));
  for (Sequence& sequence : sequences_) {
    sequence.num_kv = 0;
    sequence.pages.clear();
  }
  for (const KvTable& table : tables) SetPages(table);
  return absl::OkStatus();
}

}  // namespace moebius
