#include "worker/steps/step_executor.h"

#include <algorithm>
#include <chrono>
#include <tuple>
#include <utility>

#include "common/base/status_macros.h"
#include "kernels/cpu/vocabulary_scan.h"

namespace moebius {

// Turns logits into tokens and log-probabilities as they come.
class StepExecutor::Sink final : public LogitsSink {
 public:
  Sink(StepExecutor* executor, StepResult* result)
      : executor_(executor), result_(result) {}

  void OnLogits(size_t j, absl::Span<float> logits) override {
    const LogitRow& wanted = executor_->wanted_[j];
    if (!AllFinite(logits)) {
      ++result_->nonfinite_rows;
      result_->nonfinite_slot = wanted.slot;
    }
    const DeviceSlot& sequence = executor_->context_.slots->At(wanted.slot);
    if (!wanted.sample) {
      PromptLogprob& out = result_->prompt_logprobs.emplace_back();
      out.slot = wanted.slot;
      out.position = wanted.position;
      out.token = sequence.tokens[wanted.position];
      const Logprobs logprobs = ComputeLogprobs(
          logits, out.token, sequence.sampling.num_prompt_logprobs);
      out.rank = static_cast<uint32_t>(logprobs.rank);
      Fill(logprobs, out);
      return;
    }
    // All tokens before the one to be drawn are known, and none behind it.
    SampledValue value =
        executor_->sampler_.Sample(logits, sequence.sampling, &sequence.history,
                                   wanted.position - sequence.num_prompt_tokens,
                                   absl::MakeConstSpan(sequence.tokens)
                                       .subspan(sequence.num_prompt_tokens));
    SampledToken& out = result_->sampled.emplace_back();
    out.slot = wanted.slot;
    out.position = wanted.position;
    out.token = value.token;
    if (sequence.sampling.num_logprobs >= 0) Fill(value.logprobs, out);
  }

 private:
  template <typename Entry>
  static void Fill(const Logprobs& logprobs, Entry& out) {
    out.logprob = logprobs.logprob;
    out.top.reserve(logprobs.top.size());
    for (const auto& top : logprobs.top) {
      out.top.push_back(TokenLogprob{top.token, top.logprob});
    }
  }

  StepExecutor* executor_;
  StepResult* result_;
};

StepExecutor::StepExecutor(const StepContext& context) : context_(context) {}

void StepExecutor::AddChunk(const Batch::Chunk& chunk) {
  const DeviceSlot& sequence = context_.slots->At(chunk.slot);
  const uint32_t index = static_cast<uint32_t>(pages_.size());
  pages_.push_back(SequencePages{sequence.pages.data(), sequence.num_blocks()});
  const uint32_t end = chunk.position + chunk.num_rows;
  const bool prompt_logprobs = sequence.sampling.num_prompt_logprobs >= 0;
  for (uint32_t p = chunk.position; p < end; ++p) {
    const uint32_t row = chunk.first_row + (p - chunk.position);
    tokens_.push_back(sequence.tokens[p]);
    positions_.push_back(p);
    row_sequence_.push_back(index);
    if (prompt_logprobs && p + 1 < sequence.num_prompt_tokens) {
      logit_rows_.push_back(row);
      wanted_.push_back(LogitRow{chunk.slot, p + 1, false});
    }
    if (chunk.sample && p + 1 == end) {
      logit_rows_.push_back(row);
      wanted_.push_back(LogitRow{chunk.slot, end, true});
    }
  }
}

void StepExecutor::AddRows(const Batch& batch) {
  tokens_.clear();
  positions_.clear();
  row_sequence_.clear();
  pages_.clear();
  logit_rows_.clear();
  wanted_.clear();
  for (const Batch::Chunk& chunk : batch.chunks) AddChunk(chunk);
}

absl::Status StepExecutor::ShareTokens(StepResult& result) {
  context_.board->Post(result);
  RETURN_IF_ERROR(context_.barrier->Wait());
  for (Rank rank = 0; rank < context_.num_ranks; ++rank) {
    if (rank == context_.rank) continue;
    RETURN_IF_ERROR(context_.board->Read(rank, result));
  }
  // In TP the ranks take turns with the rows of a prompt.
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
  if (std::none_of(batch.rows_of_rank.begin(), batch.rows_of_rank.end(),
                   has_rows)) {
    // Everything was refused, on every rank. The token board needs a barrier
    // between two steps all the same.
    return context_.barrier->Wait();
  }
  AddRows(batch);
  ForwardBatch rows;
  rows.layout = batch.layout;
  rows.tokens = tokens_;
  rows.positions = positions_;
  rows.row_sequence = row_sequence_;
  rows.sequences = pages_;
  rows.rows_of_rank = batch.rows_of_rank;
  rows.logit_rows = logit_rows_;
  Sink sink(this, &result);
  return context_.forward->Run(rows, sink);
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
