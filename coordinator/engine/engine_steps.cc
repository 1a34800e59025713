// EngineHost's steps: how they are issued, and what becomes of their results.
#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/base/logging.h"
#include "common/base/status_macros.h"
#include "common/faults/fault_point.h"
#include "coordinator/engine/engine_host.h"

namespace moebius {
namespace {

// Weight of the newest value in the averages that status shows.
constexpr double kAverageWeight = 0.05;

double MicrosOf(std::chrono::steady_clock::duration duration) {
  return std::chrono::duration<double, std::micro>(duration).count();
}

void Average(double& average, double value) {
  average = average == 0 ? value : average + kAverageWeight * (value - average);
}

}  // namespace

absl::Status EngineHost::IssueSteps() {
  while (switches_->steps_allowed() &&
         static_cast<int>(flying_.size()) <
             options_.config.scheduler.steps_ahead) {
    const auto begin = Now();
    std::optional<StepPlan> plan = scheduler_->NextStep();
    if (!plan.has_value()) break;
    const StepId step = plan->step;
    if (flying_.empty()) last_progress_ = begin;
    group_.Broadcast(*std::move(plan));
    flying_.push_back(step);
    Average(status_.decision_us,
            std::exchange(unaccounted_us_, 0.0) + MicrosOf(Now() - begin));
  }
  return absl::OkStatus();
}

absl::Status EngineHost::OnStepResult(StepResult result) {
  const auto begin = Now();
  if (flying_.empty() || flying_.front() != result.step) {
    LogWarn("a result of step ", result.step.value, ", which is not the next");
    return Apply(GroupInterrupted{});
  }
  flying_.pop_front();
  last_progress_ = begin;
  Average(status_.step_ms, result.duration_us / 1000.0);
  RETURN_IF_ERROR(switches_->OnStepDone(result.step, begin));
  status_.last_step = result.step.value;
  NoteNonfinite(result);
  ASSIGN_OR_RETURN(auto tokens, scheduler_->OnResult(
                                    result.step, absl::MakeSpan(&result, 1)));
  Deliver(result.step, std::move(tokens));
  EndRefused(scheduler_->TakeRefused());
  unaccounted_us_ += MicrosOf(Now() - begin);
  return absl::OkStatus();
}

// What the workers do not compute ends with their reason, and nothing else
// does.
void EngineHost::EndRefused(std::vector<RefusedRequest> refused) {
  for (RefusedRequest& one : refused) {
    if (outputs_.erase(one.request) == 0) continue;
    one.reason.resize(
        std::min(one.reason.size(), journal::kMaxStopReasonBytes));
    LogWarn("request ", one.request.value,
            " is refused by the workers: ", one.reason);
    scheduler_->Abort(one.request);
    ++status_.requests_aborted;
    NoteEnd(one.request, FinishReason::kError, one.reason);
    Output& output = batch_.emplace_back();
    output.request = one.request;
    output.finish = FinishReason::kError;
    output.stop_reason = std::move(one.reason);
  }
}

void EngineHost::NoteNonfinite(const StepResult& result) {
  if (result.nonfinite_rows == 0) return;
  if (status_.nonfinite_rows_total == 0) {
    LogError("step ", result.step.value, ": the logits of slot ",
             result.nonfinite_slot,
             " are not finite numbers; this is said once, /status counts on");
  }
  status_.nonfinite_rows_total += result.nonfinite_rows;
  status_.nonfinite_step = result.step.value;
  status_.nonfinite_slot = result.nonfinite_slot;
}

void EngineHost::Deliver(StepId step, std::vector<NewToken> tokens) {
  journal::StepTokens added{step, {}};
  const size_t first = batch_.size();
  for (NewToken& token : tokens) {
    auto found = outputs_.find(token.request);
    if (found == outputs_.end()) continue;
    if (options_.journal != nullptr) {
      added.tokens.push_back(
          {token.request, token.token, token.prompt_logprobs});
    }
    Output& output = batch_.emplace_back();
    output.request = token.request;
    output.prompt_logprobs = std::move(token.prompt_logprobs);
    found->second.Add(absl::MakeConstSpan(&token.token, 1), output);
    ++status_.generated_tokens_total;
    if (token.reached_limit && !output.finish.has_value()) {
      output.finish = FinishReason::kLength;
    }
    if (!output.finish.has_value()) continue;
    scheduler_->Finish(token.request);
    outputs_.erase(found);
    ++status_.requests_finished;
    ended_.Add(last_progress_, 1);
  }
  if (options_.journal == nullptr || added.tokens.empty()) return;
  if (absl::Status status = Note(std::move(added)); !status.ok()) {
    LogError("journal: ", status.ToString());
  }
  for (size_t i = first; i < batch_.size(); ++i) {
    const Output& output = batch_[i];
    if (!output.finish.has_value()) continue;
    NoteEnd(output.request, *output.finish, output.stop_reason);
  }
}

// Everything of this turn at once: into the journal, then to the world.
absl::Status EngineHost::CommitAndDeliver() {
  if (options_.journal != nullptr) {
    // It may have failed before in this turn, over the epoch of a switch.
    const bool failed_before = !journal_ok();
    const absl::Status status =
        failed_before ? absl::UnavailableError(options_.journal->trouble())
                      : options_.journal->Commit();
    if (!status.ok()) {
      // What was accepted before is served on, its tokens come out the same
      // whenever they are drawn; what this turn accepted is taken back.
      if (!failed_before) LogError("journal: ", status.ToString());
      std::vector<RequestId> taken_back;
      for (Output& output : batch_) {
        if (!output.accepted) continue;
        output.accepted = false;
        output.finish = FinishReason::kAbort;
        output.refused = absl::UnavailableError(
            absl::StrCat("the journal cannot be written: ", status.message()));
        taken_back.push_back(output.request);
      }
      for (RequestId request : taken_back) {
        outputs_.erase(request);
        scheduler_->Abort(request);
        NoteEnd(request, FinishReason::kAbort, "");
      }
    }
  }
  if (!batch_.empty()) {
    RETURN_IF_ERROR(FaultPoint(batch_.front().accepted
                                   ? FaultId::kCoordinatorAccepted
                                   : FaultId::kCoordinatorTokens));
    options_.listener(std::exchange(batch_, {}));
  }
  for (Attachment& attachment : std::exchange(attachments_, {})) {
    Replay(std::move(attachment));
  }
  return absl::OkStatus();
}

}  // namespace moebius
