#include "worker/steps/device_slots.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/sample.h"

namespace moebius {
namespace {

// Keeps the memory that it has.
void Clear(DeviceSlot& slot) {
  slot.tokens.clear();
  slot.history.Clear();
  slot.num_kv = 0;
  slot.pages.clear();
  ++slot.holder;
}

}  // namespace

int DeviceSlot::num_expected() const {
  const auto first_known =
      std::find_if_not(tokens.rbegin(), tokens.rend(), IsAtPlace);
  return static_cast<int>(first_known - tokens.rbegin());
}

void DeviceSlots::Apply(Batch& batch) {
  for (const uint32_t slot : batch.released) Clear(slots_[slot]);
  for (Admission& admission : batch.admissions) Admit(std::move(admission));
  batch.admissions.clear();
  for (const PageRow& row : batch.page_rows) AddRow(row);
}

void DeviceSlots::Admit(Admission admission) {
  DeviceSlot& slot = slots_[admission.slot];
  Clear(slot);
  slot.num_prompt_tokens = admission.num_prompt_tokens;
  slot.sampling = std::move(admission.sampling);
  slot.tokens = std::move(admission.tokens);
  if (!NeedsHistory(slot.sampling)) return;
  const auto tokens = absl::MakeConstSpan(slot.tokens);
  slot.history.AddPrompt(tokens.first(slot.num_prompt_tokens));
  for (int32_t token : tokens.subspan(slot.num_prompt_tokens)) {
    slot.history.AddOutput(token);
  }
}

void DeviceSlots::AddRow(const PageRow& row) {
  DeviceSlot& slot = slots_[row.slot];
  slot.num_kv = static_cast<int>(row.pages.size());
  const size_t offset = size_t{row.block} * row.pages.size();
  slot.pages.resize(std::max(slot.pages.size(), offset + row.pages.size()));
  std::copy(row.pages.begin(), row.pages.end(), slot.pages.begin() + offset);
}

absl::Status DeviceSlots::Append(uint32_t index, uint32_t position,
                                 int32_t token) {
  if (index >= slots_.size() || slots_[index].tokens.empty()) {
    return absl::InvalidArgumentError(absl::StrCat(
        "slot ", index, ": a token for a sequence that is not here"));
  }
  DeviceSlot& slot = slots_[index];
  if (position != slot.tokens.size() || token < 0 || token >= vocab_size_) {
    return absl::InvalidArgumentError(
        absl::StrCat("slot ", index, ": token ", token, " for position ",
                     position, " after ", slot.tokens.size(), " tokens"));
  }
  slot.tokens.push_back(token);
  if (NeedsHistory(slot.sampling)) slot.history.AddOutput(token);
  return absl::OkStatus();
}

absl::Status DeviceSlots::Expect(uint32_t index, uint32_t position) {
  if (index >= slots_.size() || slots_[index].tokens.empty() ||
      position != slots_[index].tokens.size()) {
    return absl::InvalidArgumentError(absl::StrCat(
        "slot ", index, ": a token for position ", position,
        " is to be drawn, which cannot follow on those that are here"));
  }
  slots_[index].tokens.push_back(TokenAtPlace(static_cast<int>(index)));
  return absl::OkStatus();
}

absl::Status DeviceSlots::Fill(const Drawn& drawn) {
  DeviceSlot& slot = slots_[drawn.slot];
  if (drawn.token < 0 || drawn.token >= vocab_size_) {
    return absl::InvalidArgumentError(
        absl::StrCat("slot ", drawn.slot, ": token ", drawn.token,
                     " of a vocabulary of ", vocab_size_));
  }
  if (slot.holder != drawn.holder) return absl::OkStatus();
  const size_t known =
      slot.tokens.size() - static_cast<size_t>(slot.num_expected());
  if (drawn.position != known || known == slot.tokens.size()) {
    return absl::InvalidArgumentError(absl::StrCat(
        "slot ", drawn.slot, ": a token for position ", drawn.position,
        " where ", known, " of ", slot.tokens.size(), " are known"));
  }
  slot.tokens[known] = drawn.token;
  if (NeedsHistory(slot.sampling)) slot.history.AddOutput(drawn.token);
  return absl::OkStatus();
}

void DeviceSlots::Reset() {
  for (DeviceSlot& slot : slots_) Clear(slot);
}

void DeviceSlots::Put(const RestoredSequence& sequence) {
  Admit(sequence.admission);
  SetPages(sequence.table);
}

void DeviceSlots::SetPages(const KvTable& table) {
  for (const RankTable& rank : table.tables) {
    if (rank.rank != rank_) continue;
    slots_[table.slot].num_kv = rank.num_kv;
    slots_[table.slot].pages = rank.pages;
  }
}

void DeviceSlots::ReplaceTables(absl::Span<const KvTable> tables) {
  for (DeviceSlot& slot : slots_) {
    slot.num_kv = 0;
    slot.pages.clear();
  }
  for (const KvTable& table : tables) SetPages(table);
}

}  // namespace moebius
