// Scheduler::OnResult: what the workers drew.
#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/base/check.h"
#include "common/base/status_macros.h"
#include "coordinator/decisions/scheduler.h"

namespace moebius {
namespace {

absl::Status BadResult(StepId step, absl::string_view what, uint32_t slot,
                       uint32_t position) {
  return absl::InvalidArgumentError(absl::StrCat("step ", step.value, ": ",
                                                 what, " of slot ", slot,
                                                 " at position ", position));
}

}  // namespace

absl::StatusOr<std::vector<NewToken>> Scheduler::OnResult(
    StepId step, absl::Span<StepResult> results) {
  if (num_in_flight_ == 0 || records_[first_record_].step != step) {
    return absl::InvalidArgumentError(absl::StrCat(
        "a result of step ", step.value, ", which is not the oldest of the ",
        num_in_flight_, " outstanding"));
  }
  const StepRecord& record = records_[first_record_];
  for (const StepResult& result : results) {
    if (result.step != step) {
      return absl::InvalidArgumentError(
          absl::StrCat("a result of step ", result.step.value,
                       " among those of step ", step.value));
    }
  }
  RETURN_IF_ERROR(MatchRefused(record, results));
  RETURN_IF_ERROR(MatchSamples(record, results));
  RETURN_IF_ERROR(CheckPromptLogprobs(record, results));

  TakeRefusals(record, results);
  TakePromptLogprobs(record, results);
  std::vector<NewToken> tokens;
  tokens.reserve(record.samples.size());
  // The ends of all those token lists are cold: ask for them a little ahead.
  constexpr size_t kAhead = 8;
  const size_t count = record.samples.size();
  for (size_t i = 0; i < count; ++i) {
    if (i + 2 * kAhead < count) {
      __builtin_prefetch(&sequences_[record.samples[i + 2 * kAhead].sequence],
                         1);
    }
    if (i + kAhead < count) {
      const Sequence& later = sequences_[record.samples[i + kAhead].sequence];
      __builtin_prefetch(later.tokens.data() + later.tokens.size(), 1);
    }
    const Expected& expected = record.samples[i];
    Sequence& sequence = sequences_[expected.sequence];
    if (sequence.life != expected.life) continue;  // it has ended since
    if (found_[i] == nullptr) continue;            // it is refused
    CHECK(sequence.tokens.size() == expected.position);
    if (sequence.stage != Stage::kRunning) --sequence.in_flight;
    sequence.tokens.push_back(found_[i]->token);
    NewToken& token = tokens.emplace_back();
    token.request = sequence.request;
    token.token = std::move(*found_[i]);
    token.reached_limit = sequence.tokens.size() == sequence.limit;
    if (sequence.prompt_logprobs_pending) {
      sequence.prompt_logprobs_pending = false;
      token.prompt_logprobs = std::move(sequence.prompt_logprobs);
      sequence.prompt_logprobs = {};
    }
  }
  generated_tokens_ += tokens.size();
  first_record_ = (first_record_ + 1) % kMaxStepsInFlight;
  --num_in_flight_;
  return tokens;
}

// Which slots of the step are refused: each has work in it.
absl::Status Scheduler::MatchRefused(const StepRecord& record,
                                     absl::Span<const StepResult> results) {
  refused_slots_.clear();
  for (const StepResult& result : results) {
    for (const RefusedSequence& refused : result.refused) {
      const auto is_it = [&](const Expected& expected) {
        return expected.slot == refused.slot;
      };
      if (std::none_of(record.samples.begin(), record.samples.end(), is_it) &&
          std::none_of(record.chunks.begin(), record.chunks.end(), is_it)) {
        return BadResult(record.step, "a refusal without work", refused.slot,
                         0);
      }
      refused_slots_.push_back(refused.slot);
    }
  }
  std::sort(refused_slots_.begin(), refused_slots_.end());
  return absl::OkStatus();
}

bool Scheduler::IsRefused(uint32_t slot) const {
  return std::binary_search(refused_slots_.begin(), refused_slots_.end(), slot);
}

void Scheduler::TakeRefusals(const StepRecord& record,
                             absl::Span<const StepResult> results) {
  const auto sequence_in = [&](uint32_t slot) -> const Sequence* {
    for (const auto* list : {&record.samples, &record.chunks}) {
      for (const Expected& expected : *list) {
        if (expected.slot != slot) continue;
        const Sequence& sequence = sequences_[expected.sequence];
        return sequence.life == expected.life ? &sequence : nullptr;
      }
    }
    return nullptr;
  };
  for (const StepResult& result : results) {
    for (const RefusedSequence& refused : result.refused) {
      const Sequence* sequence = sequence_in(refused.slot);
      if (sequence == nullptr) continue;  // it has ended since
      refused_.push_back({sequence->request, refused.reason});
    }
  }
}

// Points found_[i] to the sample that answers record.samples[i], null if that
// is refused.
absl::Status Scheduler::MatchSamples(const StepRecord& record,
                                     absl::Span<StepResult> results) {
  const size_t count = record.samples.size();
  found_.assign(count, nullptr);
  for (size_t i = 0; i < count; ++i) {
    expected_of_[record.samples[i].slot] = static_cast<uint32_t>(i + 1);
  }
  absl::Status status;
  for (StepResult& result : results) {
    for (SampledToken& sample : result.sampled) {
      const uint32_t i =
          sample.slot < expected_of_.size() ? expected_of_[sample.slot] : 0;
      if (i == 0 || record.samples[i - 1].position != sample.position) {
        status = BadResult(record.step, "a token that was not asked for",
                           sample.slot, sample.position);
        break;
      }
      if (found_[i - 1] != nullptr) {
        status = BadResult(record.step, "a second token", sample.slot,
                           sample.position);
        break;
      }
      found_[i - 1] = &sample;
    }
    if (!status.ok()) break;
  }
  for (size_t i = 0; i < count; ++i) {
    const Expected& expected = record.samples[i];
    expected_of_[expected.slot] = 0;
    if (status.ok() && found_[i] == nullptr && !IsRefused(expected.slot)) {
      status =
          BadResult(record.step, "no token", expected.slot, expected.position);
    }
  }
  return status;
}

// The prompt's logprobs of a sequence come in order of position, over steps and
// within one. Positions that are here already were computed again after a
// preemption.
absl::Status Scheduler::CheckPromptLogprobs(
    const StepRecord& record, absl::Span<const StepResult> results) {
  prompt_have_.clear();
  for (size_t i = 0; i < record.prompts.size(); ++i) {
    const Expected& expected = record.prompts[i];
    prompt_of_[expected.slot] = static_cast<uint32_t>(i + 1);
    prompt_have_.push_back(static_cast<uint32_t>(
        sequences_[expected.sequence].prompt_logprobs.size()));
  }
  absl::Status status;
  for (const StepResult& result : results) {
    for (const PromptLogprob& logprob : result.prompt_logprobs) {
      const uint32_t i =
          logprob.slot < prompt_of_.size() ? prompt_of_[logprob.slot] : 0;
      if (i == 0) {
        status = BadResult(record.step, "a prompt logprob not asked for",
                           logprob.slot, logprob.position);
        break;
      }
      const Expected& expected = record.prompts[i - 1];
      const Sequence& sequence = sequences_[expected.sequence];
      if (sequence.life != expected.life) continue;
      uint32_t& have = prompt_have_[i - 1];
      if (logprob.position == 0 || logprob.position >= sequence.num_prompt ||
          logprob.position > have + 1) {
        status = BadResult(record.step, "a prompt logprob out of order",
                           logprob.slot, logprob.position);
        break;
      }
      have = std::max(have, logprob.position);
    }
    if (!status.ok()) break;
  }
  for (size_t i = 0; i < record.prompts.size(); ++i) {
    const Expected& expected = record.prompts[i];
    prompt_of_[expected.slot] = 0;
    const Sequence& sequence = sequences_[expected.sequence];
    // A chunk up to position p tells of the tokens up to p.
    const uint32_t due = std::min(expected.position, sequence.num_prompt - 1);
    if (status.ok() && sequence.life == expected.life &&
        !IsRefused(expected.slot) && prompt_have_[i] < due) {
      status = BadResult(record.step, "no prompt logprob", expected.slot,
                         prompt_have_[i] + 1);
    }
  }
  return status;
}

void Scheduler::TakePromptLogprobs(const StepRecord& record,
                                   absl::Span<StepResult> results) {
  if (record.prompts.empty()) return;
  for (size_t i = 0; i < record.prompts.size(); ++i) {
    prompt_of_[record.prompts[i].slot] = static_cast<uint32_t>(i + 1);
  }
  for (StepResult& result : results) {
    for (PromptLogprob& logprob : result.prompt_logprobs) {
      const Expected& expected = record.prompts[prompt_of_[logprob.slot] - 1];
      Sequence& sequence = sequences_[expected.sequence];
      if (sequence.life == expected.life &&
          logprob.position == sequence.prompt_logprobs.size() + 1) {
        sequence.prompt_logprobs.push_back(std::move(logprob));
      }
    }
  }
  for (const Expected& expected : record.prompts) {
    prompt_of_[expected.slot] = 0;
  }
}

}  // namespace moebius
