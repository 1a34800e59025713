// The scheduler's part of a switch: what moves, and what it leads to.
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/base/cat.h"
#include "common/base/check.h"
#include "common/base/status_macros.h"
#include "common/layout/kv_room.h"
#include "coordinator/decisions/scheduler.h"

namespace moebius {

absl::StatusOr<KvPlan> Scheduler::PlanSwitch(Layout target) const {
  const int n = options_.attention.num_ranks;
  if (target == layout() || !HeadsDivide(options_.attention, target)) {
    return absl::InvalidArgumentError(
        absl::StrCat("no switch from tp_size ", layout().tp_size, " to ",
                     target.tp_size, " in a group of ", n));
  }
  std::vector<KvTable> tables;
  std::vector<int64_t> kv_tokens;
  size_t most = 0;  // pages that a rank could be given
  for (const uint32_t slot : running_) {
    if (slots_[slot].sequence == kNone) continue;
    most += size_t{pages_.num_blocks(slot)} * options_.attention.num_kv_heads;
    tables.push_back(pages_.TableOf(slot));
    kv_tokens.push_back(slots_[slot].length);
  }
  auto plan = PlanKv(options_.attention, layout(), target, tables, kv_tokens,
                     pages_.FreePages(most));
  if (!absl::IsResourceExhausted(plan.status())) return plan;
  return absl::ResourceExhaustedError(
      absl::StrCat(plan.status().message(), "; all KV memory holds ",
                   RoomIn(layout()), " and ", RoomIn(target)));
}

// "1024 tokens in tp4".
std::string Scheduler::RoomIn(Layout layout) const {
  const AttentionShape& shape = options_.attention;
  const int copies = layout.tp_size / shape.num_kv_heads;
  return Cat(
      KvRoomTokens(shape, layout, options_.pages_per_rank), " tokens in ",
      LayoutName(layout, shape.num_ranks),
      copies > 1 ? Cat(" (each KV head ", copies, " times)") : std::string());
}

absl::Status Scheduler::ApplySwitch(Layout target, const KvPlan& plan) {
  const int n = options_.attention.num_ranks;
  if (target == layout() || !HeadsDivide(options_.attention, target)) {
    return absl::FailedPreconditionError(
        absl::StrCat("no switch from tp_size ", layout().tp_size, " to ",
                     target.tp_size, " in a group of ", n));
  }
  std::vector<KvTable> tables;
  for (const KvTable& table : plan.tables) {
    if (table.slot >= slots_.size()) {
      return absl::FailedPreconditionError(
          absl::StrCat("the plan names slot ", table.slot));
    }
    if (slots_[table.slot].sequence == kNone) continue;  // ended since
    if (table.num_blocks != static_cast<int>(pages_.num_blocks(table.slot))) {
      return absl::FailedPreconditionError(absl::StrCat(
          "the plan has ", table.num_blocks, " blocks for slot ", table.slot,
          ", which holds ", pages_.num_blocks(table.slot)));
    }
    tables.push_back(table);
  }
  if (static_cast<int>(tables.size()) != num_running_) {
    return absl::FailedPreconditionError(
        absl::StrCat("the plan names ", tables.size(), " of ", num_running_,
                     " running sequences"));
  }
  if (const absl::Status status = pages_.Replace(target, tables);
      !status.ok()) {
    return absl::FailedPreconditionError(status.message());
  }
  experts_ = experts_.Towards(target).Finished();
  load_tokens_.fill(0);
  load_sequences_.fill(0);
  for (const KvTable& table : tables) {
    Slot& slot = slots_[table.slot];
    slot.group = static_cast<uint8_t>(target.group_of(table.tables[0].rank));
    load_tokens_[slot.group] += slot.length;
    ++load_sequences_[slot.group];
  }
  return absl::OkStatus();
}

void Scheduler::SetExperts(const ExpertsState& experts) {
  CHECK(experts.steady() && experts.to == layout());
  experts_ = experts;
}

}  // namespace moebius
