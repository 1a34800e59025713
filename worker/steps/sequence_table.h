// The host's side of a worker's sequences, by slot: how far each is planned and
// computed, and this rank's page tables. Their tokens are the device's
// (device_slots.h).
#pragma once

#include <cstdint>
#include <deque>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "common/layout/kv_plan.h"
#include "common/layout/layout.h"
#include "common/step/stand.h"
#include "common/step/step_plan.h"
#include "worker/steps/batch.h"
#include "worker/steps/device_slots.h"

namespace moebius {

struct Sequence {
  bool live = false;
  RequestId request;
  StepId since;               // the step that admitted it; 0: it was restored
  StepId last_work;           // the last planned step that names it
  uint32_t scored = 0;        // prompt tokens to be scored, and the first
  uint32_t length = 0;        // tokens known once all planned steps are done
  uint32_t planned = 0;       // positions whose KV is there then
  uint32_t computed = 0;      // positions whose KV is there, on every rank
  int num_kv = 0;             // KV heads held here; 0: no page yet
  std::vector<PageId> pages;  // [block][num_kv]
  // Why no rank computes it; "": they do. It has no tokens then.
  std::string refused;

  int num_blocks() const {
    return num_kv == 0 ? 0 : static_cast<int>(pages.size()) / num_kv;
  }
};

// SequenceTable
//
// Applies what plans say, in order, and makes a Batch of each: the one place
// where what the coordinator says of sequences is checked. It is ahead of the
// device by the steps that are not done.
// A sequence that a request has brought in a state that no rank can compute
// (sequence_check.h) is taken in and marked as refused: its work is passed
// over, on every rank, as every rank sees the same.
// Errors are kInvalidArgument and name the slot; they mean that coordinator and
// worker disagree. Apply may have carried out a part of its plan then; the
// other calls have changed nothing. Threading: thread-compatible.
class SequenceTable {
 public:
  struct Options {
    Rank rank = 0;
    int num_ranks = 1;
    AttentionShape attention;
    uint32_t max_slots = 0;
    uint32_t max_rows = 0;       // of a step, over the group
    uint32_t num_pages = 0;      // of the pool
    uint32_t max_positions = 0;  // longest sequence
    int32_t vocab_size = 0;
  };
  // What is changed between steps is changed in `device` as well.
  SequenceTable(const Options& options, SlotTables* device)
      : options_(options), device_(device), sequences_(options.max_slots) {}

  // The plan's work here. REQUIRES: the plans before it are applied, and done
  // or to be done before it.
  absl::StatusOr<Batch> Apply(StepPlan plan);

  // The first of the applied steps that are not done is done, on every rank,
  // but for what was refused.
  void NoteDone();

  // Live sequence in `slot`, null when there is none.
  const Sequence* Find(uint32_t slot) const {
    return slot < sequences_.size() && sequences_[slot].live ? &sequences_[slot]
                                                             : nullptr;
  }

  // What is here, by slot. REQUIRES: of the other calls below, too: every step
  // that was applied is done or given up.
  std::vector<HeldSequence> Held() const;

  // Whether ReplaceTables(tables) can be done.
  absl::Status CheckTables(absl::Span<const KvTable> tables) const;

  // Empties the table, and forgets the steps that are not done.
  void Reset();
  // Puts a sequence in, in place of any that its slot holds.
  absl::Status Put(const RestoredSequence& sequence);

  // Replaces this rank's page tables by those of `tables`; a request with no
  // table for this rank holds nothing here.
  absl::Status ReplaceTables(absl::Span<const KvTable> tables);

 private:
  // What a step will have computed.
  struct Planned {
    StepId step;
    std::vector<WorkItem> items;
  };

  absl::Status CheckPages(absl::Span<const PageId> pages, uint32_t slot) const;
  // False: it is refused.
  absl::StatusOr<bool> Admit(const Admission& admission, StepId since);
  void SetPages(const KvTable& table);
  absl::Status AddRow(const PageRow& row);
  absl::Status Enter(StepPlan& plan, Batch& batch);
  absl::Status AddWork(const StepPlan& plan, Batch& batch);
  absl::Status CheckItem(const WorkItem& item, int num_kv) const;

  const Options options_;
  SlotTables* const device_;
  std::vector<Sequence> sequences_;
  std::deque<Planned> undone_;
};

}  // namespace moebius
