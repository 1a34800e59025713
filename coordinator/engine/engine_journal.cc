// EngineHost's dealings with the journal: what goes in, and what a new
// coordinator takes out.
#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/base/logging.h"
#include "common/base/status_macros.h"
#include "common/config/layout_config.h"
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
    Refuse(request, noted);
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

// Their tokens up to now; the text stage shows what they say.
TextItem EngineHost::Replay(Attachment attachment) const {
  const auto fail = [&](absl::Status status) -> TextItem {
    return [callback = std::move(attachment.callback),
            status = std::move(status)] { callback(status); };
  };
  AttachedAgain attached;
  for (RequestId request : attachment.requests) {
    const JournalChoice* choice = options_.journal == nullptr
                                      ? nullptr
                                      : options_.journal->state().Find(request);
    if (choice == nullptr) {
      return fail(absl::NotFoundError(absl::StrCat(
          "the result of generation ", request.value, " is kept no longer")));
    }
    if (choice->finish.has_value() &&
        choice->finish->stop_reason == kOtherCheckpoint &&
        choice->finish->reason == FinishReason::kAbort) {
      return fail(absl::AbortedError(
          "this answer was begun with another checkpoint, and the one that is "
          "served now cannot continue it; send the request anew"));
    }
    AttachedAgain::Generation& again = attached.generations.emplace_back();
    again.request = request;
    again.stop = choice->generation.stop;
    for (size_t i = 0; i < choice->tokens.size(); ++i) {
      again.tokens.push_back(choice->TokenAt(i));
    }
    again.prompt_logprobs = choice->prompt_logprobs;
    if (choice->finish.has_value()) {
      again.finish = choice->finish->reason;
      again.stop_reason = choice->finish->stop_reason;
    }
  }
  attached.callback = std::move(attachment.callback);
  return attached;
}

absl::StatusOr<RecoveryPlan> EngineHost::PlanFromJournal() const {
  RecoveryPlan plan;
  plan.layout = InitialLayout(options_.config);
  plan.next_step = StepId{1};
  if (options_.journal == nullptr) return plan;
  RecoveryInput input;
  input.attention = Attention();
  const JournalState& state = options_.journal->state();
  const auto is_ours = [&](Layout layout) {
    return HeadsDivide(input.attention, layout);
  };
  if ((state.layout().has_value() && !is_ours(*state.layout())) ||
      (state.undone().has_value() &&
       (!is_ours(state.undone()->from) || !is_ours(state.undone()->to)))) {
    const bool loaded =
        std::any_of(stands_.begin(), stands_.end(),
                    [](const Stand& stand) { return stand.loaded; });
    if (loaded) {
      return absl::DataLossError(
          "the journal tells of a layout that this group does not have");
    }
  }
  input.initial = plan.layout;
  input.stands = stands_;
  input.held = held_;
  return PlanRecovery(state, input);
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
  // It may be of a group of another size.
  const std::optional<LayoutChoice> choice = journal->state().choice();
  if (choice.has_value() && CheckChoice(*choice).ok()) {
    status_.choice = *choice;
    policy_->SetChoice(status_.choice);
  }
  ResumeOperations();
  RecoverRequests();
  // Of some the journal has the last token and not the end.
  std::vector<AdoptedSequence> adopting = plan.adopted;
  std::erase_if(adopting, [this](const AdoptedSequence& one) {
    const auto found = answering_.find(one.request);
    return found == answering_.end() || found->second.drawn;
  });
  if (absl::Status adopted = scheduler_->Adopt(adopting); !adopted.ok()) {
    LogError("no KV is taken over: ", adopted.ToString());
  }
  const SchedulerCounters counters = scheduler_->counters();
  if (counters.running + counters.waiting > 0) {
    LogInfo("of an earlier coordinator ", counters.running + counters.waiting,
            " requests go on, ", counters.running, " of them with their KV");
  }
  return FaultPoint(FaultId::kCoordinatorRecovering);
}

void EngineHost::RecoverRequests() {
  std::vector<std::pair<RequestId, const JournalChoice*>> all;
  for (const auto& [first, request] : options_.journal->state().requests()) {
    for (size_t i = 0; i < request.choices.size(); ++i) {
      if (request.choices[i].finish.has_value()) continue;
      all.emplace_back(RequestId{first.value + i}, &request.choices[i]);
    }
  }
  for (const auto& [request, choice] : all) {
    ++status_.requests_total;
    const auto end = EndAmong(*choice);
    if (end.has_value()) {
      RecoverEnd(request, *choice, *end);
    } else {
      RecoverRequest(request, *choice);
    }
  }
}

// Its last token was written, its end was not; nor is that here before the
// journal has it. Tokens behind it count for nothing.
void EngineHost::RecoverEnd(RequestId request, const JournalChoice& choice,
                            const EndOfTokens& end) {
  auto text = TextOf(choice, end.index);
  const bool by_text = text->has_stop_strings();
  batch_.emplace_back(GenerationBegun{request, std::move(text)});
  TokenDrawn last{request, choice.TokenAt(end.index)};
  if (end.index == 0) last.prompt_logprobs = choice.prompt_logprobs;
  batch_.emplace_back(std::move(last));
  if (by_text) {
    answering_.try_emplace(request,
                           Answering{TokenEnds(choice.generation.stop), by_text,
                                     /*drawn=*/true});
    return;
  }
  ++status_.requests_finished;
  NoteEnd(request, end.finish, end.stop_reason);
}

void EngineHost::RecoverRequest(RequestId request,
                                const JournalChoice& choice) {
  const Generation& generation = choice.generation;
  // Journals outlive what checked requests before.
  const absl::Status good = CheckSequence(
      generation.prompt, generation.sampling, options_.model.vocab_size);
  const absl::Status added =
      !good.ok() ? good
                 : scheduler_->AddKnown(
                       request, generation.prompt, generation.sampling,
                       generation.stop.max_tokens, choice.tokens);
  if (added.ok()) {
    auto text = TextOf(choice, choice.tokens.size());
    Answering answering{TokenEnds(generation.stop), text->has_stop_strings()};
    for (const int32_t token : choice.tokens) answering.ends.Take(token);
    answering.times = {.num_prompt = generation.prompt.size(),
                       .num_tokens = choice.tokens.size(),
                       .accepted = Now()};
    answering_.try_emplace(request, std::move(answering));
    batch_.emplace_back(GenerationBegun{request, std::move(text)});
    return;
  }
  // The context's end, or another model's limits.
  LogWarn("request ", request.value, " does not go on: ", added.ToString());
  GenerationEnded ended;
  ended.request = request;
  ended.finish = !good.ok()              ? FinishReason::kError
                 : choice.tokens.empty() ? FinishReason::kAbort
                                         : FinishReason::kLength;
  if (!good.ok()) ended.stop_reason = std::string(good.message());
  ++status_.requests_finished;
  NoteEnd(request, *ended.finish, ended.stop_reason);
  batch_.emplace_back(std::move(ended));
}

// Having shown its first `count` tokens.
std::unique_ptr<GenerationOutput> EngineHost::TextOf(
    const JournalChoice& choice, size_t count) const {
  auto text = std::make_unique<GenerationOutput>(options_.tokenizer,
                                                 choice.generation.stop);
  Output shown;
  for (size_t i = 0; i < count; ++i) text->Add(choice.TokenAt(i), shown);
  return text;
}

std::optional<EngineHost::EndOfTokens> EngineHost::EndAmong(
    const JournalChoice& choice) const {
  GenerationOutput text(options_.tokenizer, choice.generation.stop);
  Output shown;
  for (size_t i = 0; i < choice.tokens.size(); ++i) {
    text.Add(choice.TokenAt(i), shown);
    if (!shown.finish.has_value()) continue;
    return EndOfTokens{i, *shown.finish, shown.stop_reason};
  }
  return std::nullopt;
}

}  // namespace moebius
