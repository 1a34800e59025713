// The sequences of a worker: their tokens, sampling state and this rank's page
// tables, by slot. Every rank knows the tokens of every sequence; pages are
// this rank's own.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "common/layout/kv_plan.h"
#include "common/step/stand.h"
#include "common/step/step_plan.h"
#include "kernels/sampling.h"

namespace moebius {

struct Sequence {
  bool live = false;
  RequestId request;
  uint32_t num_prompt_tokens = 0;
  SamplingParams sampling;
  std::vector<int32_t> tokens;  // prompt, then generated
  TokenHistory history;         // of `tokens`, when sampling needs it
  int num_kv = 0;               // KV heads held here; 0: no page yet
  std::vector<PageId> pages;    // [block][num_kv]
  uint32_t computed = 0;        // positions whose KV is there, on every rank
  // Why no rank computes it; "": they do. It has no tokens then.
  std::string refused;

  int num_blocks() const {
    return num_kv == 0 ? 0 : static_cast<int>(pages.size()) / num_kv;
  }
};

// SequenceTable
//
// Applies what plans say, in order. A plan that is applied again finds the
// state it left and changes nothing: admissions replace, page rows rewrite,
// tokens are cut back to where they were.
// A sequence that a request has brought in a state that no rank can compute
// (sequence_check.h) is taken in and marked as refused: execution passes over
// its work, on every rank, as every rank sees the same.
// Errors are kInvalidArgument and name the slot; they mean that coordinator and
// worker disagree. Apply may have carried out a part of its plan then; the
// other calls have changed nothing. Threading: thread-compatible.
class SequenceTable {
 public:
  // `num_pages` of the pool and `max_slots` bound what plans may name.
  SequenceTable(Rank rank, uint32_t max_slots, uint32_t num_pages,
                int32_t vocab_size)
      : rank_(rank),
        num_pages_(num_pages),
        vocab_size_(vocab_size),
        sequences_(max_slots) {}

  // Released slots, admissions and this rank's page rows of `plan`.
  absl::Status Apply(const StepPlan& plan);

  // Live sequence in `slot`, null when there is none.
  const Sequence* Find(uint32_t slot) const {
    return slot < sequences_.size() && sequences_[slot].live ? &sequences_[slot]
                                                             : nullptr;
  }

  // Whether work in that slot is to be passed over.
  bool IsRefused(uint32_t slot) const {
    const Sequence* sequence = Find(slot);
    return sequence != nullptr && !sequence->refused.empty();
  }

  // Checks an item against the sequence: tokens known, pages there (when this
  // rank holds `num_kv` heads of it). REQUIRES: it is not refused.
  absl::Status CheckItem(const WorkItem& item, int num_kv) const;

  // All of the plan's work is done, on every rank, but for what was refused.
  void NoteDone(const StepPlan& plan);

  // What is here, by slot.
  std::vector<HeldSequence> Held() const;

  // Cuts tokens at and beyond `position` that an earlier execution of the same
  // step drew.
  void TruncateTo(uint32_t slot, uint32_t position);

  // The token drawn for `position`.
  absl::Status Append(uint32_t slot, uint32_t position, int32_t token);

  // Whether ReplaceTables(tables) can be done.
  absl::Status CheckTables(absl::Span<const KvTable> tables) const;

  // Empties the table.
  void Reset();
  // Puts a sequence in, in place of any that its slot holds.
  absl::Status Put(const RestoredSequence& sequence);

  // Replaces this rank's page tables by those of `tables`; a request with no
  // table for this rank holds nothing here.
  absl::Status ReplaceTables(absl::Span<const KvTable> tables);

 private:
  absl::Status CheckPages(absl::Span<const PageId> pages, uint32_t slot) const;
  absl::Status Admit(const Admission& admission);
  void SetPages(const KvTable& table);
  absl::Status AddRow(const PageRow& row);

  Rank rank_;
  uint32_t num_pages_;
  int32_t vocab_size_;
  std::vector<Sequence> sequences_;
};

}  // namespace moebius
