#include "worker/steps/step_executor.h"

#include <algorithm>
#include <chrono>
#include <tuple>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/base/status_macros.h"

namespace moebius {

namespace {

template <typename Entry>
void Fill(const Logprobs& logprobs, Entry& out) {
  out.logprob = logprobs.logprob;
  out.top.reserve(logprobs.top.size());
  for (const auto& top : logprobs.top) {
    out.top.push_back(TokenLogprob{top.token, top.logprob});
  }
}

}  // namespace

StepExecutor::StepExecutor(const StepContext& context) : context_(context) {}

// The logits of the row before `position`.
void StepExecutor::Want(const Batch::Chunk& chunk, uint32_t position,
                        bool sample) {
  const DeviceSlot& sequence = context_.slots->At(chunk.slot);
  SampleRow row{.sampling = &sequence.sampling};
  if (sample) {
    // All tokens before the one to be drawn are known, and none behind it.
    row.history = &sequence.history;
    row.output = absl::MakeConstSpan(sequence.tokens)
                     .subspan(sequence.num_prompt_tokens);
  } else {
    row.known = sequence.tokens[position];
  }
  builder_.Want(static_cast<int>(position - 1 - chunk.position), row);
  wanted_.push_back({chunk.slot, position, sample});
}

absl::Status StepExecutor::AddChunk(const Batch::Chunk& chunk) {
  const DeviceSlot& sequence = context_.slots->At(chunk.slot);
  // The steps before this one have drawn all that the host has counted on.
  if (sequence.tokens.size() < uint64_t{chunk.position} + chunk.num_rows) {
    return absl::InternalError(absl::StrCat(
        "slot ", chunk.slot, ": rows from ", chunk.position, " on of a step ",
        "that does not follow, with ", sequence.tokens.size(), " tokens"));
  }
  builder_.AddChunk(absl::MakeConstSpan(sequence.tokens)
                        .subspan(chunk.position, chunk.num_rows),
                    static_cast<int>(chunk.position), sequence.pages);
  const uint32_t end = chunk.position + chunk.num_rows;
  if (sequence.sampling.num_prompt_logprobs >= 0) {
    for (uint32_t p = chunk.position + 1;
         p <= end && p < sequence.num_prompt_tokens; ++p) {
      Want(chunk, p, false);
    }
  }
  if (chunk.sample) Want(chunk, end, true);
  return absl::OkStatus();
}

absl::Status StepExecutor::BuildPass(const Batch& batch) {
  builder_.Begin(batch.layout, context_.num_ranks, context_.rank);
  wanted_.clear();
  for (const Batch::Chunk& chunk : batch.chunks) {
    RETURN_IF_ERROR(AddChunk(chunk));
  }
  const int own = batch.layout.attention.group_of(context_.rank);
  for (int group = 0; group < static_cast<int>(batch.rows_of_group.size());
       ++group) {
    if (group == own) continue;
    builder_.AddOthers(group, batch.rows_of_group[group],
                       batch.wanted_of_group[group]);
  }
  return absl::OkStatus();
}

void StepExecutor::TakeResults(Layout attention, StepResult& result) const {
  const size_t every = static_cast<size_t>(attention.tp_size);
  const absl::Span<const SampledRow> rows = builder_.results();
  for (size_t j = static_cast<size_t>(attention.part_of(context_.rank));
       j < rows.size(); j += every) {
    const Wanted& wanted = wanted_[j];
    if (!rows[j].finite) {
      ++result.nonfinite_rows;
      result.nonfinite_slot = wanted.slot;
    }
    const SampledValue& value = rows[j].value;
    if (wanted.sample) {
      SampledToken& out = result.sampled.emplace_back();
      out.slot = wanted.slot;
      out.position = wanted.position;
      out.token = value.token;
      Fill(value.logprobs, out);
    } else {
      PromptLogprob& out = result.prompt_logprobs.emplace_back();
      out.slot = wanted.slot;
      out.position = wanted.position;
      out.token = value.token;
      out.rank = static_cast<uint32_t>(value.logprobs.rank);
      Fill(value.logprobs, out);
    }
  }
}

absl::Status StepExecutor::ShareTokens(StepResult& result) {
  context_.board->Post(result);
  RETURN_IF_ERROR(context_.barrier->Wait());
  for (Rank rank = 0; rank < context_.num_ranks; ++rank) {
    if (rank == context_.rank) continue;
    RETURN_IF_ERROR(context_.board->Read(rank, result));
  }
  // The ranks of a group take turns with the rows of a prompt.
  std::sort(result.prompt_logprobs.begin(), result.prompt_logprobs.end(),
            [](const PromptLogprob& a, const PromptLogprob& b) {
              return std::tie(a.slot, a.position) <
                     std::tie(b.slot, b.position);
            });
  for (const SampledToken& sampled : result.sampled) {
    RETURN_IF_ERROR(
        context_.slots->Append(sampled.slot, sampled.position, sampled.token));
  }
  return absl::OkStatus();
}

absl::Status StepExecutor::Compute(const Batch& batch, StepResult& result) {
  const auto has_rows = [](int rows) { return rows > 0; };
  if (std::none_of(batch.rows_of_group.begin(), batch.rows_of_group.end(),
                   has_rows)) {
    // Everything was refused, on every rank. The token board needs a barrier
    // between two steps all the same.
    return context_.barrier->Wait();
  }
  RETURN_IF_ERROR(BuildPass(batch));
  RETURN_IF_ERROR(context_.forward(builder_.Build()));
  TakeResults(batch.layout.attention, result);
  return absl::OkStatus();
}

absl::StatusOr<StepResult> StepExecutor::Run(Batch batch) {
  using Clock = std::chrono::steady_clock;
  const auto begin = Clock::now();
  context_.slots->Apply(batch);
  StepResult result;
  result.step = batch.step;
  result.refused = std::move(batch.refused);
  RETURN_IF_ERROR(Compute(batch, result));
  RETURN_IF_ERROR(ShareTokens(result));
  result.duration_us = static_cast<uint32_t>(
      std::chrono::duration_cast<std::chrono::microseconds>(Clock::now() -
                                                            begin)
          .count());
  return result;
}

}  // namespace moebius
