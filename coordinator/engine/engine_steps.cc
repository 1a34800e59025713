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
             options_.config.scheduler.steps_ahead &&
         text_->backlog() <= kMaxTextBacklog) {
    const auto begin = Now();
    std::optional<StepPlan> plan = scheduler_->NextStep();
    if (!plan.has_value()) break;
    const StepId step = plan->step;
    if (flying_.empty()) last_progress_ = begin;
    NoteAdmissions(*plan, begin);
    group_.Broadcast(*std::move(plan));
    flying_.push_back(step);
    Average(status_.decision_us,
            std::exchange(unaccounted_us_, 0.0) + MicrosOf(Now() - begin));
  }
  return absl::OkStatus();
}

void EngineHost::NoteAdmissions(const StepPlan& plan, Clock::time_point now) {
  for (const Admission& admission : plan.admissions) {
    const auto found = answering_.find(admission.request);
    if (found != answering_.end()) found->second.times.OnAdmitted(now);
  }
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
  // No step is under way when the layout changes.
  TotalsOf(scheduler_->layout(), status_.totals.steps)
      .seconds.Add(result.duration_us * 1e-6);
  RETURN_IF_ERROR(switches_->OnStepDone(result.step, begin));
  status_.last_step = result.step.value;
  steps_.Add(begin, 1);
  tokens_.Add(begin, result.sampled.size());
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
    const auto found = answering_.find(one.request);
    if (found == answering_.end()) continue;
    CountEnd(found->second.times, FinishReason::kError,
             status_.totals.generations);
    answering_.erase(found);
    one.reason.resize(
        std::min(one.reason.size(), journal::kMaxStopReasonBytes));
    LogWarn("request ", one.request.value,
            " is refused by the workers: ", one.reason);
    scheduler_->Abort(one.request);
    ++status_.requests_aborted;
    NoteEnd(one.request, FinishReason::kError, one.reason);
    GenerationEnded ended;
    ended.request = one.request;
    ended.finish = FinishReason::kError;
    ended.stop_reason = std::move(one.reason);
    batch_.emplace_back(std::move(ended));
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
  std::vector<journal::Ended> ended;
  if (options_.journal != nullptr) added.tokens.reserve(tokens.size());
  batch_.reserve(batch_.size() + tokens.size());
  for (NewToken& drawn : tokens) {
    const auto found = answering_.find(drawn.request);
    if (found == answering_.end()) continue;
    Answering& answering = found->second;
    const int32_t token = drawn.token.token;
    if (options_.journal != nullptr) {
      added.tokens.push_back(
          {drawn.request, drawn.token, drawn.prompt_logprobs});
    }
    batch_.emplace_back(TokenDrawn{drawn.request, std::move(drawn.token),
                                   std::move(drawn.prompt_logprobs),
                                   drawn.reached_limit});
    ++status_.generated_tokens_total;
    answering.times.OnToken(last_progress_);
    const TokenEnd end = answering.ends.Take(token);
    if (end == TokenEnd::kNone && !drawn.reached_limit) continue;
    scheduler_->Finish(drawn.request);
    if (answering.by_text) {
      answering.drawn = true;
      continue;
    }
    const bool stopped = end == TokenEnd::kEos || end == TokenEnd::kStopToken;
    ended.push_back({drawn.request,
                     stopped ? FinishReason::kStop : FinishReason::kLength,
                     end == TokenEnd::kStopToken ? std::to_string(token) : ""});
    CountEnd(answering.times, ended.back().finish, status_.totals.generations);
    answering_.erase(found);
    ++status_.requests_finished;
    ended_.Add(last_progress_, 1);
  }
  if (options_.journal == nullptr || added.tokens.empty()) return;
  if (absl::Status status = Note(std::move(added)); !status.ok()) {
    LogError("journal: ", status.ToString());
  }
  for (const journal::Ended& one : ended) {
    NoteEnd(one.request, one.finish, one.stop_reason);
  }
}

// Generations with stop strings end where the text stage says. What was drawn
// behind that is in the journal, and counts for nothing there either.
void EngineHost::TakeTextEnds() {
  for (const TextEnd& end : text_->TakeEnds()) {
    const auto found = answering_.find(end.request);
    if (found == answering_.end()) continue;  // aborted since
    if (!found->second.drawn) scheduler_->Finish(end.request);
    CountEnd(found->second.times, end.finish, status_.totals.generations);
    answering_.erase(found);
    ++status_.requests_finished;
    ended_.Add(Now(), 1);
    NoteEnd(end.request, end.finish, end.stop_reason);
    GenerationEnded ended;
    ended.request = end.request;
    batch_.emplace_back(std::move(ended));
  }
}

void EngineHost::TakeBackAccepted(const absl::Status& why) {
  for (TextItem& item : batch_) {
    const auto* begun = std::get_if<GenerationBegun>(&item);
    if (begun == nullptr || !begun->accepted) continue;
    const RequestId request = begun->request;
    GenerationEnded ended;
    ended.request = request;
    ended.finish = FinishReason::kAbort;
    ended.refused = why;
    item = std::move(ended);
    answering_.erase(request);
    scheduler_->Abort(request);
    NoteEnd(request, FinishReason::kAbort, "");
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
      TakeBackAccepted(absl::UnavailableError(
          absl::StrCat("the journal cannot be written: ", status.message())));
    }
  }
  if (!batch_.empty()) {
    const auto* begun = std::get_if<GenerationBegun>(&batch_.front());
    RETURN_IF_ERROR(FaultPoint(begun != nullptr && begun->accepted
                                   ? FaultId::kCoordinatorAccepted
                                   : FaultId::kCoordinatorTokens));
    text_->Push(batch_);
  }
  for (Attachment& attachment : std::exchange(attachments_, {})) {
    batch_.push_back(Replay(std::move(attachment)));
  }
  if (!batch_.empty()) text_->Push(batch_);
  return absl::OkStatus();
}

}  // namespace moebius
