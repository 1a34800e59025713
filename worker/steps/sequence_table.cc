#include "worker/steps/sequence_table.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/base/check.h"
#include "common/base/status_macros.h"
#include "common/step/sequence_check.h"

namespace moebius {
namespace {

absl::Status Disagree(uint32_t slot, absl::string_view what) {
  return absl::InvalidArgumentError(absl::StrCat("slot ", slot, ": ", what));
}

// Rows of `item` whose logits are wanted.
int NumWanted(const Sequence& sequence, const WorkItem& item) {
  // The row before each prompt token but the first, and before a drawn one.
  const uint32_t end = item.position + item.num_tokens;
  const uint32_t last = std::min(end + 1, sequence.scored);
  const uint32_t scored =
      last > item.position + 1 ? last - item.position - 1 : 0;
  return static_cast<int>(scored) + (item.sample ? 1 : 0);
}

// Keeps the memory that it has.
void Clear(Sequence& sequence) {
  std::vector<PageId> pages = std::move(sequence.pages);
  pages.clear();
  sequence = Sequence{};
  sequence.pages = std::move(pages);
}

}  // namespace

absl::Status SequenceTable::CheckPages(absl::Span<const PageId> pages,
                                       uint32_t slot) const {
  for (PageId page : pages) {
    if (page >= options_.num_pages) {
      return Disagree(slot, absl::StrCat("page ", page, " of a pool of ",
                                         options_.num_pages));
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<bool> SequenceTable::Admit(const Admission& admission,
                                          StepId since) {
  if (admission.slot >= sequences_.size()) {
    return Disagree(admission.slot,
                    absl::StrCat("there are ", sequences_.size(), " slots"));
  }
  Sequence& sequence = sequences_[admission.slot];
  Clear(sequence);
  sequence.live = true;
  sequence.request = admission.request;
  sequence.since = since;
  const absl::Status good =
      CheckSequence(admission.tokens, admission.sampling, options_.vocab_size);
  if (!good.ok()) {
    sequence.refused = std::string(good.message());
    return false;
  }
  if (admission.num_prompt_tokens > admission.tokens.size()) {
    return Disagree(admission.slot,
                    absl::StrCat("a prompt of ", admission.num_prompt_tokens,
                                 " of ", admission.tokens.size(), " tokens"));
  }
  sequence.length = static_cast<uint32_t>(admission.tokens.size());
  if (admission.sampling.num_prompt_logprobs >= 0) {
    sequence.scored = admission.num_prompt_tokens;
  }
  return true;
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

// What leaves, what comes, and what grows.
absl::Status SequenceTable::Enter(StepPlan& plan, Batch& batch) {
  for (uint32_t slot : plan.released) {
    if (slot >= sequences_.size()) return Disagree(slot, "released");
    Clear(sequences_[slot]);
  }
  batch.released = std::move(plan.released);
  for (Admission& admission : plan.admissions) {
    ASSIGN_OR_RETURN(const bool computed, Admit(admission, plan.step));
    if (computed) {
      batch.admissions.push_back(std::move(admission));
    } else {
      batch.released.push_back(admission.slot);  // by whatever was there
    }
  }
  for (PageRow& row : plan.page_rows) {
    if (row.rank != options_.rank) continue;
    RETURN_IF_ERROR(AddRow(row));
    if (sequences_[row.slot].refused.empty()) {
      batch.page_rows.push_back(std::move(row));
    }
  }
  return absl::OkStatus();
}

// Tokens known, and pages there when this rank holds `num_kv` heads of it.
absl::Status SequenceTable::CheckItem(const WorkItem& item, int num_kv) const {
  const Sequence& sequence = *Find(item.slot);
  const uint64_t end = uint64_t{item.position} + item.num_tokens;
  if (end > sequence.length) {
    return Disagree(item.slot,
                    absl::StrCat("work up to token ", end, " but only ",
                                 sequence.length, " are known"));
  }
  if (end > options_.max_positions) {
    return Disagree(item.slot,
                    absl::StrCat("work up to token ", end, " of a context of ",
                                 options_.max_positions));
  }
  if (item.num_tokens == 0 || item.position > sequence.planned) {
    return Disagree(item.slot,
                    absl::StrCat("work on ", item.num_tokens, " tokens from ",
                                 item.position, " on, with ", sequence.planned,
                                 " before them computed"));
  }
  if (num_kv > 0 && (sequence.num_kv != num_kv ||
                     end > uint64_t{kPageTokens} * sequence.num_blocks())) {
    return Disagree(
        item.slot,
        absl::StrCat("work up to token ", end, " with ", sequence.num_blocks(),
                     " blocks of ", sequence.num_kv, " heads"));
  }
  return absl::OkStatus();
}

absl::Status SequenceTable::AddWork(const StepPlan& plan, Batch& batch) {
  if (!HeadsDivide(options_.attention, plan.layout.attention)) {
    return absl::InvalidArgumentError(
        absl::StrCat("attention of tp_size ", plan.layout.attention.tp_size,
                     " in a group of ", options_.num_ranks));
  }
  const Layout attention = plan.layout.attention;
  const int num_groups = attention.num_groups(options_.num_ranks);
  batch.rows_of_group.assign(num_groups, 0);
  batch.wanted_of_group.assign(num_groups, 0);
  const int num_kv =
      HeadsOf(options_.attention, attention, options_.rank).num_kv();
  uint64_t rows_left = options_.max_rows;
  for (const WorkItem& item : plan.items) {
    if (item.group >= num_groups) {
      return Disagree(item.slot, absl::StrCat("group ", item.group));
    }
    if (Find(item.slot) == nullptr) {
      return Disagree(item.slot, "work for a sequence that is not here");
    }
    Sequence& sequence = sequences_[item.slot];
    if (std::exchange(sequence.last_work, plan.step) == plan.step) {
      return Disagree(item.slot, "work twice in a step");
    }
    if (!sequence.refused.empty()) {
      batch.refused.push_back({item.slot, sequence.refused});
      continue;
    }
    const bool ours = item.group == attention.group_of(options_.rank);
    RETURN_IF_ERROR(CheckItem(item, ours ? num_kv : 0));
    if (item.num_tokens > rows_left) {
      return Disagree(item.slot, absl::StrCat("a step of more than ",
                                              options_.max_rows, " rows"));
    }
    rows_left -= item.num_tokens;
    int& rows = batch.rows_of_group[item.group];
    const Batch::Chunk chunk{item.slot, static_cast<uint32_t>(rows),
                             item.num_tokens, item.position, item.sample};
    rows += static_cast<int>(item.num_tokens);
    batch.wanted_of_group[item.group] += NumWanted(sequence, item);
    if (ours) {
      batch.chunks.push_back(chunk);
    } else {
      batch.elsewhere.push_back({item.group, chunk});
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<Batch> SequenceTable::Apply(StepPlan plan) {
  Batch batch;
  batch.step = plan.step;
  batch.layout = plan.layout;
  RETURN_IF_ERROR(Enter(plan, batch));
  RETURN_IF_ERROR(AddWork(plan, batch));
  std::erase_if(plan.items, [this](const WorkItem& item) {
    return !sequences_[item.slot].refused.empty();
  });
  for (const WorkItem& item : plan.items) {
    Sequence& sequence = sequences_[item.slot];
    sequence.planned = item.position + item.num_tokens;
    // It may be computed again.
    if (item.sample) sequence.length = sequence.planned + 1;
  }
  undone_.push_back({plan.step, std::move(plan.items)});
  return batch;
}

void SequenceTable::NoteDone() {
  CHECK(!undone_.empty());
  const Planned done = std::move(undone_.front());
  undone_.pop_front();
  for (const WorkItem& item : done.items) {
    // A step applied since may have given the slot to another.
    Sequence& sequence = sequences_[item.slot];
    if (!sequence.live || sequence.since > done.step) continue;
    sequence.computed = item.position + item.num_tokens;
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

absl::Status SequenceTable::CheckTables(
    absl::Span<const KvTable> tables) const {
  for (const KvTable& table : tables) {
    if (Find(table.slot) == nullptr) {
      return Disagree(table.slot, "a table for a sequence that is not here");
    }
    for (const RankTable& rank : table.tables) {
      if (rank.rank != options_.rank) continue;
      RETURN_IF_ERROR(CheckPages(rank.pages, table.slot));
    }
  }
  return absl::OkStatus();
}

void SequenceTable::Reset() {
  for (Sequence& sequence : sequences_) Clear(sequence);
  undone_.clear();
  device_->Reset();
}

absl::Status SequenceTable::Put(const RestoredSequence& sequence) {
  ASSIGN_OR_RETURN(const bool computed, Admit(sequence.admission, StepId{0}));
  RETURN_IF_ERROR(CheckTables(absl::MakeConstSpan(&sequence.table, 1)));
  SetPages(sequence.table);
  Sequence& here = sequences_[sequence.admission.slot];
  here.computed = here.planned = sequence.computed;
  if (computed) device_->Put(sequence);
  return absl::OkStatus();
}

// This rank's part of a table that was checked.
void SequenceTable::SetPages(const KvTable& table) {
  for (const RankTable& rank : table.tables) {
    if (rank.rank != options_.rank) continue;
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
  device_->ReplaceTables(tables);
  return absl::OkStatus();
}

}  // namespace moebius
