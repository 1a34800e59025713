// EngineHost's dealings with the journal: what goes in, and what a new
// coordinator takes out.
#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/base/logging.h"
#include "common/base/status_macros.h"
#include "common/faults/fault_point.h"
#include "common/step/sequence_check.h"
#include "coordinator/engine/engine_host.h"

namespace moebius {
namespace {

// How often a journal in trouble is tried again, and old results are dropped.
constexpr std::chrono::milliseconds kJournalTick(500);

}  // namespace

absl::Status EngineHost::Note(journal::Record record) {
  if (options_.journal == nullptr) return absl::OkStatus();
  return options_.journal->Append(std::move(record));
}

int EngineHost::NumUnfinished() const {
  if (options_.journal == nullptr) return 0;
  const JournalState::Requests& all = options_.journal->state().requests();
  return static_cast<int>(std::count_if(
      all.begin(), all.end(),
      [](const auto& entry) { return entry.second.num_unfinished > 0; }));
}

void EngineHost::NoteEnd(RequestId request, FinishReason finish,
                         const std::string& stop_reason) {
  if (options_.journal == nullptr) return;
  const absl::Status noted = Note(journal::Ended{
      request, finish, stop_reason, options_.unix_ms ? options_.unix_ms() : 0});
  if (!noted.ok()) LogError("journal: ", noted.ToString());
}

void EngineHost::Accept(Submission submission) {
  absl::Status noted;
  if (options_.journal != nullptr) {
    journal::Accepted accepted;
    accepted.context = std::move(submission.context);
    accepted.unix_ms = options_.unix_ms ? options_.unix_ms() : 0;
    for (size_t i = 0; i < submission.generations.size(); ++i) {
      accepted.generations.push_back(
          {RequestId{submission.first.value + i}, submission.generations[i]});
    }
    noted = options_.journal->healthy() ? Note(std::move(accepted))
                                        : absl::UnavailableError(absl::StrCat(
                                              "the journal cannot be written: ",
                                              options_.journal->trouble()));
  }
  for (size_t i = 0; i < submission.generations.size(); ++i) {
    const RequestId request{submission.first.value + i};
    if (noted.ok()) {
      Queue(request, std::move(submission.generations[i]));
      continue;
    }
    Output& output = batch_.emplace_back();
    output.request = request;
    output.finish = FinishReason::kAbort;
    output.refused = noted;
    ++status_.requests_aborted;
  }
}

int EngineHost::JournalTickMs() const {
  constexpr int kResultsMs = 5000;
  if (options_.journal == nullptr) return -1;
  if (!options_.journal->healthy()) {
    return static_cast<int>(kJournalTick.count());
  }
  return options_.journal->state().requests().empty() ? -1 : kResultsMs;
}

absl::Status EngineHost::TickJournal(Clock::time_point now) {
  Journal* const journal = options_.journal;
  if (journal == nullptr || now - last_journal_tick_ < kJournalTick) {
    return absl::OkStatus();
  }
  last_journal_tick_ = now;
  if (absl::Status removed = journal->CheckPresence(); !removed.ok()) {
    LogError("journal: ", removed.ToString(), "; it is written anew");
  }
  if (!journal->healthy() && journal->TryHeal().ok()) {
    LogInfo("the journal can be written again");
  }
  const Config& config = options_.config;
  const int64_t unix_ms = options_.unix_ms ? options_.unix_ms() : 0;
  const std::vector<RequestId> forgotten = journal->state().ForgetEndedBefore(
      unix_ms - config.journal.keep_results_ms, config.journal.keep_results,
      static_cast<uint64_t>(config.journal.keep_results_bytes));
  for (RequestId request : forgotten) {
    RETURN_IF_ERROR(Note(journal::Forgotten{request}));
  }
  if (!forgotten.empty() && options_.on_forgotten) {
    options_.on_forgotten(forgotten);
  }
  return absl::OkStatus();
}

// What they have shown so far is what their tokens show.
void EngineHost::Replay(Attachment attachment) {
  std::vector<Output> outputs;
  for (RequestId request : attachment.requests) {
    const JournalChoice* choice = options_.journal == nullptr
                                      ? nullptr
                                      : options_.journal->state().Find(request);
    if (choice == nullptr) {
      return attachment.callback(absl::NotFoundError(absl::StrCat(
          "the result of generation ", request.value, " is kept no longer")));
    }
    if (choice->finish.has_value() &&
        choice->finish->stop_reason == kOtherCheckpoint &&
        choice->finish->reason == FinishReason::kAbort) {
      return attachment.callback(absl::AbortedError(
          "this answer was begun with another checkpoint, and the one that is "
          "served now cannot continue it; send the request anew"));
    }
    GenerationOutput generation(options_.tokenizer, choice->generation.stop);
    for (size_t i = 0; i < choice->tokens.size(); ++i) {
      Output& output = outputs.emplace_back();
      output.request = request;
      if (i == 0) output.prompt_logprobs = choice->prompt_logprobs;
      const SampledToken token = choice->TokenAt(i);
      generation.Add(absl::MakeConstSpan(&token, 1), output);
      if (output.finish.has_value()) break;
      if (i + 1 == choice->tokens.size() && choice->finish.has_value()) {
        output.finish = choice->finish->reason;
        output.stop_reason = choice->finish->stop_reason;
      }
    }
    if (choice->tokens.empty() && choice->finish.has_value()) {
      Output& output = outputs.emplace_back();
      output.request = request;
      output.finish = choice->finish->reason;
      output.stop_reason = choice->finish->stop_reason;
    }
  }
  attachment.callback(std::move(outputs));
}

RecoveryPlan EngineHost::PlanFromJournal() const {
  RecoveryPlan plan;
  plan.layout = InitialLayout(options_.config);
  plan.next_step = StepId{1};
  if (options_.journal == nullptr) return plan;
  RecoveryInput input;
  input.attention = {options_.config.workers.count, options_.model.num_q_heads,
                     options_.model.num_kv_heads};
  input.initial = plan.layout;
  input.stands = stands_;
  input.held = held_;
  return PlanRecovery(options_.journal->state(), input);
}

// A group that begins anew has nothing to do with what the journal says of
// layouts and incarnations. Were that not on the disk when its memory counts as
// loaded (with RESUME), a later coordinator would take that memory for the old
// group's.
absl::StatusOr<bool> EngineHost::WriteBeginning(const RecoveryPlan& plan) {
  if (options_.journal == nullptr || !plan.anew) return true;
  RETURN_IF_ERROR(Note(journal::GroupBegun{plan.layout}));
  const absl::Status written = options_.journal->Commit();
  if (written.ok()) return true;
  status_.not_ready_reason =
      absl::StrCat("the group cannot begin: the journal cannot be written: ",
                   options_.journal->trouble());
  LogError(status_.not_ready_reason);
  return false;
}

absl::Status EngineHost::Recover(const RecoveryPlan& plan) {
  Journal* const journal = options_.journal;
  if (journal == nullptr) return absl::OkStatus();
  const bool unfinished = plan.unfinished;
  if (plan.finished) {
    RETURN_IF_ERROR(
        Note(journal::SwitchDone{journal->state().undone()->epoch}));
  }
  switches_->Recover(journal->state().proposed(),
                     unfinished ? &*journal->state().undone() : nullptr);
  if (journal->state().choice().has_value()) {
    status_.choice = *journal->state().choice();
    policy_->SetChoice(status_.choice);
  }
  RETURN_IF_ERROR(RecoverRequests());
  if (absl::Status adopted = scheduler_->Adopt(plan.adopted); !adopted.ok()) {
    LogError("no KV is taken over: ", adopted.ToString());
  }
  const SchedulerCounters counters = scheduler_->counters();
  if (counters.running + counters.waiting > 0) {
    LogInfo("of an earlier coordinator ", counters.running + counters.waiting,
            " requests go on, ", counters.running, " of them with their KV");
  }
  return FaultPoint(FaultId::kCoordinatorRecovering);
}

absl::Status EngineHost::RecoverRequests() {
  struct Unfinished {
    RequestId request;
    const JournalChoice* choice;
  };
  std::vector<Unfinished> all;
  for (const auto& [first, request] : options_.journal->state().requests()) {
    for (size_t i = 0; i < request.choices.size(); ++i) {
      if (request.choices[i].finish.has_value()) continue;
      all.push_back({RequestId{first.value + i}, &request.choices[i]});
    }
  }
  struct End {
    RequestId request;
    Output output;
  };
  std::vector<End> ended;
  for (const auto& [request, choice] : all) {
    const Generation& generation = choice->generation;
    GenerationOutput output(options_.tokenizer, generation.stop);
    Output shown;
    for (size_t i = 0; i < choice->tokens.size() && !shown.finish; ++i) {
      const SampledToken token = choice->TokenAt(i);
      output.Add(absl::MakeConstSpan(&token, 1), shown);
    }
    ++status_.requests_total;
    if (!shown.finish.has_value()) {
      // Journals outlive what checked requests before.
      const absl::Status good = CheckSequence(
          generation.prompt, generation.sampling, options_.model.vocab_size);
      const absl::Status added =
          !good.ok() ? good
                     : scheduler_->AddKnown(
                           request, generation.prompt, generation.sampling,
                           generation.stop.max_tokens, choice->tokens);
      if (added.ok()) {
        outputs_.try_emplace(request, std::move(output));
        continue;
      }
      // The context's end, or another model's limits.
      LogWarn("request ", request.value, " does not go on: ", added.ToString());
      shown.finish = !good.ok()               ? FinishReason::kError
                     : choice->tokens.empty() ? FinishReason::kAbort
                                              : FinishReason::kLength;
      if (!good.ok()) shown.stop_reason = std::string(good.message());
    }
    ended.push_back({request, std::move(shown)});
  }
  // Their last token was written, their end was not.
  for (const End& end : ended) {
    ++status_.requests_finished;
    NoteEnd(end.request, *end.output.finish, end.output.stop_reason);
  }
  return absl::OkStatus();
}

}  // namespace moebius
