#include "worker/steps/ahead_steps.h"

#include <algorithm>
#include <tuple>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/base/check.h"
#include "common/base/status_macros.h"

namespace moebius {
namespace {

bool HasRows(const Batch& batch) {
  return std::any_of(batch.rows_of_group.begin(), batch.rows_of_group.end(),
                     [](int rows) { return rows > 0; });
}

// Whether what can be drawn depends on which tokens were drawn before, and not
// on their number alone.
bool DependsOnTokens(const SamplingParams& sampling) {
  const auto is_long = [](const std::vector<int32_t>& word) {
    return word.size() > 1;
  };
  return NeedsHistory(sampling) ||
         std::any_of(sampling.bad_words.begin(), sampling.bad_words.end(),
                     is_long);
}

template <typename Entry>
void PutLogprobs(const GpuSampledRow& from, Entry& to) {
  to.logprob = from.logprob;
  to.top.reserve(static_cast<size_t>(from.num_top));
  for (int i = 0; i < from.num_top; ++i) {
    to.top.push_back(TokenLogprob{from.top[i].token, from.top[i].logprob});
  }
}

}  // namespace

void AheadSteps::Enter(Batch batch) {
  CHECK(!entered_.has_value());
  // Nobody under way looks at the slots any more, but to fill in tokens.
  context_.slots->Apply(batch);
  entered_ = std::move(batch);
}

bool AheadSteps::DrawsOnHost(const Batch::Chunk& chunk) const {
  return chunk.sample &&
         !context_.slots->At(chunk.slot).sampling.allowed_ids.empty();
}

bool AheadSteps::IsAlone(const Batch& batch) const {
  return !HasRows(batch) ||
         std::any_of(batch.chunks.begin(), batch.chunks.end(),
                     [this](const Batch::Chunk& chunk) {
                       return DrawsOnHost(chunk);
                     }) ||
         std::any_of(batch.elsewhere.begin(), batch.elsewhere.end(),
                     [this](const Batch::Elsewhere& elsewhere) {
                       return DrawsOnHost(elsewhere.chunk);
                     });
}

// The device has the last token of a sequence alone.
bool AheadSteps::IsKnown(const Batch::Chunk& chunk) const {
  const DeviceSlot& sequence = context_.slots->At(chunk.slot);
  const size_t expected = static_cast<size_t>(sequence.num_expected());
  if (expected == 0) return true;
  if (chunk.sample && DependsOnTokens(sequence.sampling)) return false;
  const size_t last = sequence.tokens.size() - 1;
  const size_t first_expected = sequence.tokens.size() - expected;
  const size_t begin = std::max<size_t>(first_expected, chunk.position);
  const size_t end = size_t{chunk.position} + chunk.num_rows;
  return begin >= std::min(end, last);
}

bool AheadSteps::CanLaunch() const {
  CHECK(entered_.has_value());
  if (under_way_.empty()) return true;
  return under_way_.size() < size_t{PassLauncher::kMostUnderWay} &&
         !under_way_.back().alone && !IsAlone(*entered_) &&
         std::all_of(
             entered_->chunks.begin(), entered_->chunks.end(),
             [this](const Batch::Chunk& chunk) { return IsKnown(chunk); });
}

absl::Status AheadSteps::CheckChunk(const Batch::Chunk& chunk) const {
  const size_t num_tokens = context_.slots->At(chunk.slot).tokens.size();
  // The steps before this one have drawn all that the host has counted on, or
  // are about to.
  if (num_tokens >= uint64_t{chunk.position} + chunk.num_rows) {
    return absl::OkStatus();
  }
  return absl::InternalError(absl::StrCat(
      "slot ", chunk.slot, ": rows from ", chunk.position,
      " on of a step that does not follow, with ", num_tokens, " tokens"));
}

template <class F>
void AheadSteps::ForEachWanted(const Batch::Chunk& chunk, const F& want) const {
  const DeviceSlot& sequence = context_.slots->At(chunk.slot);
  const uint32_t end = chunk.position + chunk.num_rows;
  if (sequence.sampling.num_prompt_logprobs >= 0) {
    for (uint32_t p = chunk.position + 1;
         p <= end && p < sequence.num_prompt_tokens; ++p) {
      want(p, false);
    }
  }
  if (chunk.sample) want(end, true);
}

void AheadSteps::AddRows(const Batch::Chunk& chunk) {
  const DeviceSlot& sequence = context_.slots->At(chunk.slot);
  const auto tokens = absl::MakeConstSpan(sequence.tokens);
  builder_.AddChunk(tokens.subspan(chunk.position, chunk.num_rows),
                    static_cast<int>(chunk.position), sequence.pages);
  ForEachWanted(chunk, [&](uint32_t position, bool drawn) {
    SampleRow row{.sampling = &sequence.sampling};
    if (drawn) {
      row.history = &sequence.history;
      row.output = tokens.subspan(sequence.num_prompt_tokens);
      row.place = static_cast<int>(chunk.slot);
    } else {
      row.known = sequence.tokens[position];
    }
    builder_.Want(static_cast<int>(position - 1 - chunk.position), row);
  });
}

// The ranks of a group take turns with its rows.
void AheadSteps::AddWanted(const Batch::Chunk& chunk, Layout attention,
                           int group, Step& step) {
  const DeviceSlot& sequence = context_.slots->At(chunk.slot);
  ForEachWanted(chunk, [&](uint32_t position, bool drawn) {
    Wanted& wanted = step.wanted.emplace_back();
    wanted.row = next_row_[group]++;
    wanted.rank = attention.first_rank(group) + wanted.row % attention.tp_size;
    wanted.slot = chunk.slot;
    wanted.holder = sequence.holder;
    wanted.position = position;
    wanted.known = drawn ? -1 : sequence.tokens[position];
    wanted.logprobs = !drawn || sequence.sampling.num_logprobs >= 0;
  });
}

absl::Status AheadSteps::BuildPass(const Batch& batch, Step& step) {
  const Layout attention = batch.layout.attention;
  const int own = attention.group_of(context_.rank);
  builder_.Begin(batch.layout, context_.num_ranks, context_.rank);
  next_row_.assign(batch.rows_of_group.size(), 0);
  for (const Batch::Chunk& chunk : batch.chunks) {
    RETURN_IF_ERROR(CheckChunk(chunk));
    AddRows(chunk);
    AddWanted(chunk, attention, own, step);
  }
  for (const Batch::Elsewhere& elsewhere : batch.elsewhere) {
    RETURN_IF_ERROR(CheckChunk(elsewhere.chunk));
    AddWanted(elsewhere.chunk, attention, elsewhere.group, step);
  }
  for (int group = 0; group < static_cast<int>(batch.rows_of_group.size());
       ++group) {
    if (group == own) continue;
    builder_.AddOthers(group, batch.rows_of_group[group],
                       batch.wanted_of_group[group]);
  }
  return absl::OkStatus();
}

absl::Status AheadSteps::ExpectTokens(const Step& step) {
  for (const Wanted& wanted : step.wanted) {
    if (wanted.known >= 0) continue;
    RETURN_IF_ERROR(context_.slots->Expect(wanted.slot, wanted.position));
  }
  return absl::OkStatus();
}

absl::Status AheadSteps::Launch() {
  CHECK(entered_.has_value());
  Batch batch = *std::exchange(entered_, std::nullopt);
  Step step;
  step.begin = Clock::now();
  step.step = batch.step;
  step.alone = IsAlone(batch);
  step.has_pass = HasRows(batch);
  step.refused = std::move(batch.refused);
  if (step.has_pass) {
    RETURN_IF_ERROR(BuildPass(batch, step));
    // The first of these points into the tokens.
    const absl::Status launched =
        context_.passes->Launch(builder_.Build(), batch.step.value);
    RETURN_IF_ERROR(launched);
    RETURN_IF_ERROR(ExpectTokens(step));
  }
  under_way_.push_back(std::move(step));
  return absl::OkStatus();
}

void AheadSteps::AwaitEnd(StepId step) {
  context_.passes->AwaitEnd(step.value);
}

absl::Status AheadSteps::ReadRow(const Step& step, const Wanted& wanted,
                                 StepResult& result) {
  const GpuSampledRow row =
      context_.board->At(wanted.rank, step.step.value, wanted.row);
  if (row.num_top < 0 || row.num_top > kMaxLogprobs) {
    return absl::DataLossError(absl::StrCat("what rank ", wanted.rank,
                                            " shows of step ", step.step.value,
                                            " is no result"));
  }
  if (row.finite == 0) {
    ++result.nonfinite_rows;
    result.nonfinite_slot = wanted.slot;
  }
  if (wanted.known >= 0) {
    PromptLogprob& out = result.prompt_logprobs.emplace_back();
    out.slot = wanted.slot;
    out.position = wanted.position;
    out.token = wanted.known;
    out.rank = static_cast<uint32_t>(row.rank);
    PutLogprobs(row, out);
    return absl::OkStatus();
  }
  RETURN_IF_ERROR(context_.slots->Fill(
      {wanted.slot, wanted.holder, wanted.position, row.token}));
  SampledToken& out = result.sampled.emplace_back();
  out.slot = wanted.slot;
  out.position = wanted.position;
  out.token = row.token;
  if (wanted.logprobs) PutLogprobs(row, out);
  return absl::OkStatus();
}

absl::Status AheadSteps::Read(const Step& step, StepResult& result) {
  for (const Wanted& wanted : step.wanted) {
    RETURN_IF_ERROR(ReadRow(step, wanted, result));
  }
  std::sort(result.prompt_logprobs.begin(), result.prompt_logprobs.end(),
            [](const PromptLogprob& a, const PromptLogprob& b) {
              return std::tie(a.slot, a.position) <
                     std::tie(b.slot, b.position);
            });
  return absl::OkStatus();
}

absl::StatusOr<StepResult> AheadSteps::Finish() {
  CHECK(!under_way_.empty());
  Step step = std::move(under_way_.front());
  under_way_.pop_front();
  StepResult result;
  result.step = step.step;
  result.refused = std::move(step.refused);
  if (step.has_pass) {
    RETURN_IF_ERROR(context_.passes->Finish(step.step.value));
  }
  if (step.alone) {
    if (step.has_pass) context_.passes->DrawOnHost();
    RETURN_IF_ERROR(context_.barrier->Wait());
  }
  RETURN_IF_ERROR(Read(step, result));
  const Clock::time_point end = Clock::now();
  // What it waited for the step before it is not its own.
  const Clock::time_point begin = std::max(step.begin, last_end_);
  last_end_ = end;
  result.duration_us = static_cast<uint32_t>(
      std::chrono::duration_cast<std::chrono::microseconds>(end - begin)
          .count());
  return result;
}

void AheadSteps::Drain() {
  context_.passes->Drain();
  entered_.reset();
  under_way_.clear();
}

}  // namespace moebius
