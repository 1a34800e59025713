#include "worker/steps/step_executor.h"

#include <algorithm>
#include <tuple>
#include <utility>

#include "absl/strings/str_cat.h"
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
    const Sequence& sequence =
        *executor_->context_.sequences->Find(wanted.slot);
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

absl::Status StepExecutor::AddItem(const WorkItem& item, int num_kv) {
  SequenceTable& sequences = *context_.sequences;
  RETURN_IF_ERROR(sequences.CheckItem(item, num_kv));
  const Sequence& sequence = *sequences.Find(item.slot);
  const uint32_t index = static_cast<uint32_t>(pages_.size());
  pages_.push_back(SequencePages{sequence.pages.data(), sequence.num_blocks()});
  const uint32_t end = item.position + item.num_tokens;
  const bool prompt_logprobs = sequence.sampling.num_prompt_logprobs >= 0;
  for (uint32_t p = item.position; p < end; ++p) {
    const uint32_t row = static_cast<uint32_t>(tokens_.size());
    tokens_.push_back(sequence.tokens[p]);
    positions_.push_back(p);
    row_sequence_.push_back(index);
    if (prompt_logprobs && p + 1 < sequence.num_prompt_tokens) {
      logit_rows_.push_back(row);
      wanted_.push_back(LogitRow{item.slot, p + 1, false});
    }
    if (item.sample && p + 1 == end) {
      logit_rows_.push_back(row);
      wanted_.push_back(LogitRow{item.slot, end, true});
    }
  }
  return absl::OkStatus();
}

absl::Status StepExecutor::BuildBatch(const StepPlan& plan,
                                      StepResult& result) {
  tokens_.clear();
  positions_.clear();
  row_sequence_.clear();
  pages_.clear();
  logit_rows_.clear();
  wanted_.clear();
  rows_of_rank_.assign(context_.num_ranks, 0);
  const bool ep = plan.layout.attention.is_ep();
  const int num_kv =
      HeadsOf(context_.attention, plan.layout.attention, context_.rank)
          .num_kv();
  for (const WorkItem& item : plan.items) {
    if (item.owner >= context_.num_ranks) {
      return absl::InvalidArgumentError(
          absl::StrCat("slot ", item.slot, ": owner ", item.owner));
    }
    if (context_.sequences->IsRefused(item.slot)) {
      result.refused.push_back(
          {item.slot, context_.sequences->Find(item.slot)->refused});
      continue;
    }
    // An earlier execution of this step may have drawn what comes after.
    if (item.sample) {
      context_.sequences->TruncateTo(item.slot,
                                     item.position + item.num_tokens);
    }
    rows_of_rank_[item.owner] += static_cast<int>(item.num_tokens);
    if (!ep || item.owner == context_.rank) {
      RETURN_IF_ERROR(AddItem(item, num_kv));
    } else {
      RETURN_IF_ERROR(context_.sequences->CheckItem(item, 0));
    }
  }
  batch_.layout = plan.layout;
  batch_.tokens = tokens_;
  batch_.positions = positions_;
  batch_.row_sequence = row_sequence_;
  batch_.sequences = pages_;
  batch_.rows_of_rank = rows_of_rank_;
  batch_.logit_rows = logit_rows_;
  return absl::OkStatus();
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
    RETURN_IF_ERROR(context_.sequences->Append(sampled.slot, sampled.position,
                                               sampled.token));
  }
  return absl::OkStatus();
}

absl::Status StepExecutor::Compute(StepResult& result) {
  for (const int rows : rows_of_rank_) {
    if (rows == 0) continue;
    Sink sink(this, &result);
    return context_.forward->Run(batch_, sink);
  }
  // Everything was refused, on every rank. The token board needs a barrier
  // between two steps all the same.
  return context_.barrier->Wait();
}

absl::StatusOr<StepResult> StepExecutor::Execute(const StepPlan& plan) {
  RETURN_IF_ERROR(context_.sequences->Apply(plan));
  StepResult result;
  result.step = plan.step;
  RETURN_IF_ERROR(BuildBatch(plan, result));
  RETURN_IF_ERROR(Compute(result));
  RETURN_IF_ERROR(ShareTokens(result));
  return result;
}

}  // namespace moebius
