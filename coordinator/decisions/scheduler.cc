#include "coordinator/decisions/scheduler.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/base/check.h"
#include "common/base/status_macros.h"

namespace moebius {
namespace {

absl::Status CheckRange(const char* name, int64_t value, int64_t highest) {
  if (value >= 1 && value <= highest) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat(name, " is ", value, "; allowed: 1 to ", highest));
}

}  // namespace

absl::StatusOr<Scheduler> Scheduler::Create(const SchedulerOptions& options) {
  RETURN_IF_ERROR(Validate(options.attention));
  const int n = options.attention.num_ranks;
  if (!HeadsDivide(options.attention, options.layout)) {
    return absl::InvalidArgumentError(
        absl::StrCat("a group of ", n, " ranks has no layout with tp_size ",
                     options.layout.tp_size));
  }
  RETURN_IF_ERROR(CheckRange("max_running", options.max_running, kMaxRunning));
  RETURN_IF_ERROR(CheckRange("max_queue", options.max_queue, kMaxQueue));
  RETURN_IF_ERROR(
      CheckRange("token_budget", options.token_budget, kMaxTokenBudget));
  RETURN_IF_ERROR(
      CheckRange("max_model_len", options.max_model_len, kMaxModelLen));
  if (static_cast<int>(options.pages_per_rank.size()) != n) {
    return absl::InvalidArgumentError(
        absl::StrCat("page pools of ", options.pages_per_rank.size(),
                     " ranks for a group of ", n));
  }
  if (options.first_step.value < 1) {
    return absl::InvalidArgumentError("steps are numbered from 1");
  }
  for (int r = 0; r < n; ++r) {
    // One block at least; and two tables of ids must not exhaust our memory.
    RETURN_IF_ERROR(CheckRange("the number of head pages of a rank",
                               options.pages_per_rank[r], int64_t{1} << 30));
    if (options.pages_per_rank[r] <
        static_cast<uint32_t>(options.attention.num_kv_heads)) {
      return absl::InvalidArgumentError(absl::StrCat(
          "rank ", r, " has ", options.pages_per_rank[r],
          " head pages, fewer than the ", options.attention.num_kv_heads,
          " KV heads: not one block fits"));
    }
  }
  return Scheduler(options);
}

Scheduler::Scheduler(const SchedulerOptions& options)
    : options_(options),
      pages_(options.attention, options.layout,
             static_cast<uint32_t>(options.max_running),
             options.pages_per_rank),
      next_step_(options.first_step),
      experts_(ExpertsState::AtHome(options.layout)),
      slots_(options.max_running),
      records_(kMaxStepsInFlight),
      expected_of_(options.max_running, 0),
      prompt_of_(options.max_running, 0) {
  for (int i = options.max_running; i > 0; --i) {
    free_slots_.push_back(static_cast<uint32_t>(i - 1));
  }
  running_.reserve(options.max_running);
}

int Scheduler::queue_room() const {
  return std::max(0, options_.max_queue - static_cast<int>(waiting_.size()));
}

// Tokens that a request has at its end. A prompt that fills the context has one
// more: nobody computes with it, but to draw it is to score the prompt.
int64_t Scheduler::LimitOf(int64_t num_prompt, int max_tokens) const {
  return std::max<int64_t>(
      num_prompt + 1,
      std::min<int64_t>(num_prompt + max_tokens, options_.max_model_len));
}

absl::Status Scheduler::CheckRequest(RequestId request, int64_t n,
                                     int max_tokens) const {
  if (n == 0) return absl::InvalidArgumentError("the prompt has no tokens");
  if (max_tokens < 1) {
    return absl::InvalidArgumentError(
        absl::StrCat("max_tokens is ", max_tokens, "; at least 1 is needed"));
  }
  const bool scored = n == options_.max_model_len && max_tokens == 1;
  if (n >= options_.max_model_len && !scored) {
    return absl::InvalidArgumentError(absl::StrCat(
        "the prompt has ", n, " tokens; the context holds ",
        options_.max_model_len, ", of which the answer needs at least 1"));
  }
  const int64_t limit = LimitOf(n, max_tokens);
  // The last token's KV is never needed. EP needs the most room of one rank,
  // and the layout may change while the request waits. Wider groups hold no
  // less of one sequence: a rank has fewer heads of it.
  const int64_t pages = int64_t{BlocksFor(static_cast<uint32_t>(limit - 1))} *
                        options_.attention.num_kv_heads;
  const int64_t pool = *std::min_element(options_.pages_per_rank.begin(),
                                         options_.pages_per_rank.end());
  if (pages > pool) {
    return absl::InvalidArgumentError(absl::StrCat(
        "a prompt of ", n, " tokens with ", limit - n, " to generate may need ",
        pages, " KV head pages; a rank has ", pool));
  }
  if (by_id_.contains(request.value)) {
    return absl::AlreadyExistsError(
        absl::StrCat("request ", request.value, " is known already"));
  }
  return absl::OkStatus();
}

absl::Status Scheduler::Add(RequestId request, std::vector<int32_t> prompt,
                            SamplingParams sampling, int max_tokens) {
  RETURN_IF_ERROR(
      CheckRequest(request, static_cast<int64_t>(prompt.size()), max_tokens));
  if (queue_room() == 0) {
    return absl::ResourceExhaustedError(
        absl::StrCat("the queue is full: ", waiting_.size(), " requests wait"));
  }
  const size_t num_prompt = prompt.size();
  AddWaiting(request, std::move(prompt), num_prompt, std::move(sampling),
             max_tokens);
  return absl::OkStatus();
}

void Scheduler::AddWaiting(RequestId request, std::vector<int32_t> tokens,
                           size_t num_prompt, SamplingParams sampling,
                           int max_tokens) {
  uint32_t index;
  if (unused_sequences_.empty()) {
    index = static_cast<uint32_t>(sequences_.size());
    sequences_.emplace_back();
  } else {
    index = unused_sequences_.back();
    unused_sequences_.pop_back();
  }
  const bool begun = tokens.size() > num_prompt;
  Sequence& sequence = sequences_[index];
  sequence.request = request;
  sequence.slot = kNone;
  sequence.num_prompt = static_cast<uint32_t>(num_prompt);
  sequence.limit = static_cast<uint32_t>(
      LimitOf(static_cast<int64_t>(num_prompt), max_tokens));
  sequence.in_flight = 0;
  sequence.stage = Stage::kWaiting;
  sequence.tokens = std::move(tokens);
  sequence.arrival = next_arrival_++;
  sequence.sampling = std::move(sampling);
  sequence.prompt_logprobs_pending =
      sequence.sampling.num_prompt_logprobs >= 0 && !begun;
  sequence.admitted_before = false;
  by_id_.emplace(request.value, index);
  waiting_.push_back(index);
}

bool Scheduler::End(RequestId request) {
  const auto it = by_id_.find(request.value);
  if (it == by_id_.end()) return false;
  const uint32_t index = it->second;
  by_id_.erase(it);
  Sequence& sequence = sequences_[index];
  if (sequence.stage == Stage::kRunning) {
    LeaveSlot(sequence.slot);
  } else if (sequence.stage == Stage::kWaiting) {
    waiting_.erase(std::find(waiting_.begin(), waiting_.end(), index));
  }
  Forget(index);
  return true;
}

void Scheduler::Forget(uint32_t index) {
  Sequence& sequence = sequences_[index];
  ++sequence.life;  // what is in flight for it has no owner now
  sequence.tokens = {};
  sequence.sampling = {};
  sequence.prompt_logprobs = {};
  unused_sequences_.push_back(index);
}

// running_ keeps the slot's entry until DropEnded: no slot is given to another
// sequence before that.
void Scheduler::LeaveSlot(uint32_t slot) {
  Slot& s = slots_[slot];
  CHECK(s.sequence != kNone);
  load_tokens_[s.group] -= s.length;
  --load_sequences_[s.group];
  --num_running_;
  s.sequence = kNone;
  pages_.Release(slot);
  released_.push_back(slot);
  free_slots_.push_back(slot);
}

void Scheduler::Preempt(uint32_t slot) {
  const Slot& s = slots_[slot];
  const uint32_t index = s.sequence;
  Sequence& sequence = sequences_[index];
  ++preemptions_;
  dropped_tokens_ += s.computed;
  const bool all_issued = s.length == s.limit;
  sequence.in_flight = s.length - static_cast<uint32_t>(sequence.tokens.size());
  LeaveSlot(slot);
  sequence.slot = kNone;
  if (all_issued) {
    sequence.stage = Stage::kIssued;
  } else {
    Enqueue(index);
  }
}

// Every request that was ever admitted is older than all that were not, so the
// place is near the front.
void Scheduler::Enqueue(uint32_t index) {
  sequences_[index].stage = Stage::kWaiting;
  const uint64_t arrival = sequences_[index].arrival;
  auto place = waiting_.begin();
  while (place != waiting_.end() && sequences_[*place].arrival < arrival) {
    ++place;
  }
  waiting_.insert(place, index);
}

SchedulerCounters Scheduler::counters() const {
  return {num_running_,   static_cast<int>(waiting_.size()),
          preemptions_,   dropped_tokens_,
          prompt_tokens_, generated_tokens_};
}

}  // namespace moebius
