// Scheduler::NextStep: which sequences run in the next step.
#include <algorithm>
#include <tuple>
#include <utility>

#include "common/base/check.h"
#include "coordinator/decisions/scheduler.h"

namespace moebius {

std::optional<StepPlan> Scheduler::NextStep() {
  if (num_in_flight_ == kMaxStepsInFlight) return std::nullopt;
  DropEnded();
  StepRecord& record =
      records_[(first_record_ + num_in_flight_) % kMaxStepsInFlight];
  record.step = next_step_;
  record.samples.clear();
  record.prompts.clear();
  record.chunks.clear();

  Draft draft;
  draft.record = &record;
  draft.budget = static_cast<uint32_t>(options_.token_budget);
  draft.plan.step = next_step_;
  draft.plan.layout = {pages_.layout(), experts_};
  draft.plan.items.reserve(num_running_);
  draft.plan.page_rows.reserve(last_rows_);
  PlanDecodes(draft);
  PlanPrefill(draft);
  if (draft.plan.items.empty()) return std::nullopt;

  last_rows_ = draft.plan.page_rows.size();
  draft.plan.released = std::move(released_);
  released_.clear();
  next_step_ = next_step_.next();
  ++num_in_flight_;
  return std::move(draft.plan);
}

// Takes the slots that were left since the last plan out of running_.
void Scheduler::DropEnded() {
  if (running_.size() == static_cast<size_t>(num_running_)) return;
  std::erase_if(running_, [this](uint32_t slot) {
    return slots_[slot].sequence == kNone;
  });
}

void Scheduler::AddItem(Draft& draft, uint32_t slot, uint32_t start,
                        uint32_t count) {
  Slot& s = slots_[slot];
  const uint32_t end = start + count;
  const bool sample = end == s.length;
  draft.plan.items.push_back({slot, start, count, s.group, sample});
  if (s.prompt_logprobs) {
    draft.record->prompts.push_back({s.sequence, s.life, slot, end});
  }
  if (sample) {
    draft.record->samples.push_back({s.sequence, s.life, slot, end});
    ++s.length;
    ++load_tokens_[s.group];
    // The step that draws the first new token completes the prompt.
    s.prompt_logprobs = false;
  }
}

// One token of every sequence that has caught up with its last one. In order
// of arrival, so that one that must give way to an older one has no item yet.
void Scheduler::PlanDecodes(Draft& draft) {
  prefills_.clear();
  const uint64_t step = next_step_.value;
  for (const uint32_t slot : running_) {
    Slot& s = slots_[slot];
    if (s.sequence == kNone) continue;  // preempted in this loop
    if (s.length >= s.limit) continue;  // all is issued
    if (s.length - s.computed != 1) {
      prefills_.push_back(slot);
      continue;
    }
    if (draft.budget == 0) continue;
    if (s.computed >= s.room) {
      if (!MakeRoom(slot)) continue;
      pages_.Grow(slot, s.group, 1, draft.plan.page_rows);
      s.room += kPageTokens;
    }
    s.planned = step;
    --draft.budget;
    const uint32_t start = s.computed++;
    AddItem(draft, slot, start, 1);
  }
}

// Latest arrival of `group` without an item in the plan being made.
uint32_t Scheduler::LatestUnplanned(int group) const {
  for (size_t i = running_.size(); i > 0; --i) {
    const uint32_t slot = running_[i - 1];
    const Slot& s = slots_[slot];
    if (s.sequence != kNone && s.group == group &&
        s.planned != next_step_.value) {
      return slot;
    }
  }
  return kNone;
}

// Frees a block for `slot`, which has no item yet, by preempting later
// arrivals; false when that took the slot itself.
bool Scheduler::MakeRoom(uint32_t slot) {
  const int group = slots_[slot].group;
  while (pages_.free_blocks(group) == 0) {
    const uint32_t victim = LatestUnplanned(group);
    CHECK(victim != kNone);
    Preempt(victim);
    if (victim == slot) return false;
  }
  return true;
}

// Prompt chunks, oldest first, then admissions, until the budget is spent. With
// several groups a first round gives each its share only; what is left goes out
// in a second.
void Scheduler::PlanPrefill(Draft& draft) {
  if (draft.budget == 0) return;
  chunks_.clear();
  const uint32_t groups = static_cast<uint32_t>(pages_.num_groups());
  draft.cap.fill((draft.budget + groups - 1) / groups);
  const bool may_admit = PrefillRunning(draft);
  DropEnded();  // a slot left just now may be taken again
  if (may_admit) AdmitWaiting(draft);
  if (groups > 1 && draft.budget > 0) {
    draft.cap.fill(draft.budget);
    for (Chunk& chunk : chunks_) Extend(draft, chunk);
    if (may_admit) AdmitWaiting(draft);
  }
  for (const Chunk& chunk : chunks_) {
    if (chunk.num_tokens > 0) {
      const Slot& s = slots_[chunk.slot];
      draft.record->chunks.push_back(
          {s.sequence, s.life, chunk.slot, chunk.start});
      AddItem(draft, chunk.slot, chunk.start, chunk.num_tokens);
    }
  }
}

void Scheduler::AdmitWaiting(Draft& draft) {
  while (draft.budget > 0 && AdmitFront(draft)) {
  }
}

// Chunks of the prompts that are admitted already. False when one of them
// could not go on for want of pages: no other may come in and take them.
bool Scheduler::PrefillRunning(Draft& draft) {
  std::erase_if(prefills_, [this](uint32_t slot) {
    return slots_[slot].sequence == kNone;
  });
  for (const uint32_t slot : prefills_) {
    const Slot& s = slots_[slot];
    draft.promised[s.group] += BlocksFor(s.length) - s.room / kPageTokens;
  }
  bool all_go_on = true;
  for (const uint32_t slot : prefills_) {
    const Slot& s = slots_[slot];
    if (s.sequence == kNone) continue;  // preempted in this loop
    if (draft.budget == 0 || draft.cap[s.group] == 0) continue;
    if (s.computed >= s.room && !MakePrefillRoom(draft, slot)) {
      all_go_on = false;
      continue;
    }
    Extend(draft, chunks_.emplace_back(Chunk{slot, s.computed, 0}));
  }
  return all_go_on;
}

// Frees a block for the prompt in `slot` by preempting later arrivals. Those
// with an item in this plan keep their pages: they will end, or give way in
// their turn.
bool Scheduler::MakePrefillRoom(Draft& draft, uint32_t slot) {
  const Slot& s = slots_[slot];
  while (pages_.free_blocks(s.group) == 0) {
    const uint32_t victim = LatestUnplanned(s.group);
    const Slot& v = slots_[victim];
    // The slot itself is unplanned, so there is one; older ones stay.
    if (victim == slot ||
        sequences_[v.sequence].arrival < sequences_[s.sequence].arrival) {
      return false;
    }
    if (v.length - v.computed > 1) {  // a prompt on its way
      draft.promised[v.group] -= BlocksFor(v.length) - v.room / kPageTokens;
    }
    Preempt(victim);
  }
  return true;
}

// Lengthens a chunk as far as prompt, budget, the group's share and pages go.
void Scheduler::Extend(Draft& draft, Chunk& chunk) {
  Slot& s = slots_[chunk.slot];
  uint32_t count =
      std::min({s.length - s.computed, draft.budget, draft.cap[s.group]});
  if (count == 0) return;
  const uint32_t end = s.computed + count;
  if (end > s.room) {
    const uint32_t blocks =
        std::min(BlocksFor(end - s.room), pages_.free_blocks(s.group));
    if (blocks > 0) {
      pages_.Grow(chunk.slot, s.group, blocks, draft.plan.page_rows);
      s.room += blocks * kPageTokens;
      draft.promised[s.group] -= blocks;
    }
    count = std::min(end, s.room) - s.computed;
  }
  if (count == 0) return;
  s.planned = next_step_.value;
  s.computed += count;
  chunk.num_tokens += count;
  draft.budget -= count;
  draft.cap[s.group] -= count;
}

// Group with the least load that holds `blocks` more beside what is promised,
// or -1. Where others run, some room to grow is left, lest the newcomer be
// preempted at once.
int Scheduler::ChooseGroup(const Draft& draft, uint32_t blocks) const {
  int best = -1;
  for (int g = 0; g < pages_.num_groups(); ++g) {
    const int others = load_sequences_[g];
    const int64_t room = int64_t{pages_.free_blocks(g)} - draft.promised[g] -
                         (others > 0 ? others / 4 + 1 : 0);
    if (room < blocks) continue;
    if (best < 0 || std::tie(load_tokens_[g], load_sequences_[g]) <
                        std::tie(load_tokens_[best], load_sequences_[best])) {
      best = g;
    }
  }
  return best;
}

// Admits the request that waits first and gives it a chunk. False when it has
// to wait on; none overtakes it.
bool Scheduler::AdmitFront(Draft& draft) {
  if (waiting_.empty() || free_slots_.empty()) return false;
  if (draft.listed >= kMaxListedNumbers) return false;
  const uint32_t index = waiting_.front();
  Sequence& sequence = sequences_[index];
  if (sequence.in_flight > 0) return false;
  const uint32_t length = static_cast<uint32_t>(sequence.tokens.size());
  const uint32_t blocks = BlocksFor(length);
  const int group = ChooseGroup(draft, blocks);
  if (group < 0 || draft.cap[group] == 0) return false;

  waiting_.pop_front();
  const uint32_t slot = AddRunning(index, group);
  draft.promised[group] += blocks;
  Admission& admission = draft.plan.admissions.emplace_back();
  admission.slot = slot;
  admission.request = sequence.request;
  admission.num_prompt_tokens = sequence.num_prompt;
  admission.tokens = sequence.tokens;
  admission.sampling = sequence.sampling;
  draft.listed += ListedNumbers(sequence.sampling);
  if (!sequence.prompt_logprobs_pending) {
    admission.sampling.num_prompt_logprobs = -1;
  }
  Extend(draft, chunks_.emplace_back(Chunk{slot, 0, 0}));
  return true;
}

// Puts a waiting sequence into a free slot, in its place by arrival.
uint32_t Scheduler::AddRunning(uint32_t index, int group) {
  const uint32_t slot = free_slots_.back();
  free_slots_.pop_back();
  Occupy(slot, index, group);
  return slot;
}

void Scheduler::Occupy(uint32_t slot, uint32_t index, int group) {
  Sequence& sequence = sequences_[index];
  if (!sequence.admitted_before) {
    sequence.admitted_before = true;
    prompt_tokens_ += sequence.num_prompt;
  }
  sequence.stage = Stage::kRunning;
  sequence.slot = slot;
  Slot& s = slots_[slot];
  s = Slot{};
  s.sequence = index;
  s.life = sequence.life;
  s.length = static_cast<uint32_t>(sequence.tokens.size());
  s.limit = sequence.limit;
  s.group = static_cast<uint8_t>(group);
  s.prompt_logprobs = sequence.prompt_logprobs_pending;
  load_tokens_[group] += s.length;
  ++load_sequences_[group];
  ++num_running_;

  size_t place = running_.size();
  running_.push_back(slot);
  for (; place > 0; --place) {
    const uint32_t before = slots_[running_[place - 1]].sequence;
    if (before != kNone && sequences_[before].arrival < sequence.arrival) break;
    running_[place] = running_[place - 1];
  }
  running_[place] = slot;
}

}  // namespace moebius
