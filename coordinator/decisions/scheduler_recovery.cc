// The scheduler's part of a recovery: back to the last result, or on from where
// an earlier coordinator was.
#include <algorithm>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/base/check.h"
#include "common/base/status_macros.h"
#include "coordinator/decisions/scheduler.h"

namespace moebius {

// As of the last result: all its tokens are known, and all but the last one's
// positions computed, unless the prompt is still on its way.
void Scheduler::RollBackSlot(Slot& slot) {
  const Sequence& sequence = sequences_[slot.sequence];
  const uint32_t known = static_cast<uint32_t>(sequence.tokens.size());
  if (slot.length > known) {
    load_tokens_[slot.group] -= slot.length - known;
    slot.length = known;
  }
  if (slot.computed >= known) slot.computed = known - 1;
  slot.planned = 0;
  slot.prompt_logprobs = sequence.prompt_logprobs_pending;
}

void Scheduler::RollBack() {
  DropEnded();
  for (const uint32_t slot : running_) RollBackSlot(slots_[slot]);
  // A prompt stands where its first discarded chunk began: at 0 if it was
  // preempted and came in again meanwhile.
  for (int i = 0; i < num_in_flight_; ++i) {
    const StepRecord& record =
        records_[(first_record_ + i) % kMaxStepsInFlight];
    for (const Expected& chunk : record.chunks) {
      Slot& slot = slots_[chunk.slot];
      if (slot.sequence == chunk.sequence && slot.life == chunk.life) {
        slot.computed = std::min(slot.computed, chunk.position);
      }
    }
  }
  num_in_flight_ = 0;
  released_.clear();
  // Samples of preempted sequences will not come any more.
  std::vector<uint32_t> issued;
  for (const auto& [request, index] : by_id_) {
    Sequence& sequence = sequences_[index];
    sequence.in_flight = 0;
    if (sequence.stage == Stage::kIssued) issued.push_back(index);
  }
  for (const uint32_t index : issued) {
    // One whose last token is known waits for Finish alone.
    if (sequences_[index].tokens.size() < sequences_[index].limit) {
      Enqueue(index);
    }
  }
}

void Scheduler::LoseKv(RankSet ranks, bool everything) {
  CHECK(num_in_flight_ == 0);
  DropEnded();
  for (const uint32_t slot : std::vector<uint32_t>(running_)) {
    const int group = slots_[slot].group;
    bool lost = everything;
    for (int part = 0; part < layout().tp_size; ++part) {
      lost = lost || ranks.contains(layout().first_rank(group) + part);
    }
    if (lost) Preempt(slot);
  }
  DropEnded();
  released_.clear();
}

std::vector<RestoredSequence> Scheduler::Snapshot() const {
  CHECK(num_in_flight_ == 0);
  std::vector<RestoredSequence> all;
  all.reserve(num_running_);
  for (const uint32_t slot : running_) {
    if (slots_[slot].sequence == kNone) continue;
    const Sequence& sequence = sequences_[slots_[slot].sequence];
    RestoredSequence& one = all.emplace_back();
    one.admission = {slot, sequence.request, sequence.num_prompt,
                     sequence.tokens, sequence.sampling};
    if (!sequence.prompt_logprobs_pending) {
      one.admission.sampling.num_prompt_logprobs = -1;
    }
    one.table = pages_.TableOf(slot);
    one.computed = slots_[slot].computed;
  }
  return all;
}

std::vector<journal::RunningSequence> Scheduler::Running() const {
  std::vector<journal::RunningSequence> all;
  for (const uint32_t slot : running_) {
    if (slots_[slot].sequence == kNone) continue;
    all.push_back({sequences_[slots_[slot].sequence].request, slot,
                   slots_[slot].computed});
  }
  return all;
}

absl::Status Scheduler::AddKnown(RequestId request, std::vector<int32_t> prompt,
                                 SamplingParams sampling, int max_tokens,
                                 absl::Span<const int32_t> generated) {
  const size_t num_prompt = prompt.size();
  RETURN_IF_ERROR(
      CheckRequest(request, static_cast<int64_t>(num_prompt), max_tokens));
  if (num_prompt + generated.size() >=
      static_cast<size_t>(
          LimitOf(static_cast<int64_t>(num_prompt), max_tokens))) {
    return absl::InvalidArgumentError(
        absl::StrCat("request ", request.value, " has all of its ",
                     generated.size(), " tokens already"));
  }
  // Until Adopt says otherwise.
  if (!generated.empty()) {
    dropped_tokens_ += num_prompt + generated.size() - 1;
  }
  prompt.insert(prompt.end(), generated.begin(), generated.end());
  AddWaiting(request, std::move(prompt), num_prompt, std::move(sampling),
             max_tokens);
  return absl::OkStatus();
}

absl::Status Scheduler::Adopt(absl::Span<const AdoptedSequence> adopted) {
  CHECK(num_running_ == 0 && num_in_flight_ == 0);
  std::vector<KvTable> tables;
  for (const AdoptedSequence& one : adopted) {
    const auto found = by_id_.find(one.request.value);
    if (found == by_id_.end() ||
        sequences_[found->second].stage != Stage::kWaiting ||
        one.computed >= sequences_[found->second].tokens.size() ||
        BlocksFor(one.computed) > static_cast<uint32_t>(one.table.num_blocks)) {
      return absl::InvalidArgumentError(absl::StrCat(
          "request ", one.request.value, " with ", one.computed,
          " positions computed in ", one.table.num_blocks, " blocks"));
    }
    tables.push_back(one.table);
  }
  RETURN_IF_ERROR(pages_.Replace(layout(), tables));
  for (const AdoptedSequence& one : adopted) {
    const uint32_t index = by_id_.at(one.request.value);
    const uint32_t slot = one.table.slot;
    waiting_.erase(std::find(waiting_.begin(), waiting_.end(), index));
    free_slots_.erase(std::find(free_slots_.begin(), free_slots_.end(), slot));
    Occupy(slot, index, layout().group_of(one.table.tables[0].rank));
    const Sequence& sequence = sequences_[index];
    if (sequence.tokens.size() > sequence.num_prompt) {
      dropped_tokens_ -= one.computed;
    }
    // The log-probabilities of a prompt that was half done have died with the
    // coordinator that had collected them: all of it is computed again.
    slots_[slot].computed = sequence.prompt_logprobs_pending ? 0 : one.computed;
    slots_[slot].room =
        static_cast<uint32_t>(one.table.num_blocks) * kPageTokens;
  }
  return absl::OkStatus();
}

}  // namespace moebius
