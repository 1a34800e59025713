// EngineHost's operations: what operators ask for under a name, so that they
// may ask again, also a later coordinator.
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/base/logging.h"
#include "common/base/status_macros.h"
#include "coordinator/engine/engine_host.h"

namespace moebius {
namespace {

// Calls that wait for operations to end.
constexpr size_t kMaxOperationWaiters = 64;

}  // namespace

void EngineHost::Operate(Operation operation, bool wait,
                         OperationCallback callback) {
  {
    absl::MutexLock lock(&mutex_);
    inbox_.operations.push_back(
        {std::move(operation), wait, std::move(callback)});
  }
  hub_->Wake();
}

// ---- the engine's thread ---------------------------------------------------

const KnownOperation* EngineHost::FindOperation(const std::string& id) const {
  for (const KnownOperation& one : options_.journal->state().operations()) {
    if (one.operation.id == id) return &one;
  }
  return nullptr;
}

std::optional<Layout> EngineHost::TargetOf(LayoutChoice choice) const {
  if (choice.is_auto()) return std::nullopt;
  return choice.LayoutIn(options_.config.workers.count);
}

absl::Status EngineHost::CheckChoice(LayoutChoice choice) const {
  return choice.is_auto()
             ? absl::OkStatus()
             : ParseLayout(LayoutChoiceName(choice), Attention()).status();
}

void EngineHost::TakeOperation(OperationCall call) {
  if (!scheduler_.has_value() || options_.journal == nullptr || !journal_ok()) {
    return call.callback(absl::UnavailableError(
        scheduler_.has_value() ? "the journal cannot be written"
                               : "not ready"));
  }
  const Journal& journal = *options_.journal;
  const OperationJudgement judged =
      Judge(journal.state().operations(), call.operation);
  const bool begins = judged.verdict == OperationVerdict::kBegins;
  const bool goes_on = begins || (judged.verdict == OperationVerdict::kKnown &&
                                  !judged.known->end.has_value());
  if (goes_on && call.wait &&
      operation_waiters_.size() >= kMaxOperationWaiters) {
    return call.callback(
        absl::UnavailableError("too many calls wait for operations"));
  }
  if (!begins && !(goes_on && call.wait)) {
    // In the journal already, or it will be before this is said.
    operation_answers_.emplace_back(
        [callback = std::move(call.callback),
         answer = OperationAnswer{judged.verdict, *judged.known}] {
          callback(answer);
        });
    return;
  }
  const std::string id = call.operation.id;
  if (begins) {
    const int64_t unix_ms = options_.unix_ms ? options_.unix_ms() : 0;
    absl::Status written = Note(journal::OperationBegun{
        call.operation, unix_ms, journal.state().decided()});
    if (written.ok()) written = options_.journal->Commit();
    if (!written.ok()) {
      // Nothing was done for it; in memory it is there and has to end.
      EndOperation(id, call.operation.kind, {.status = written});
      return call.callback(absl::UnavailableError(
          absl::StrCat("the journal cannot be written: ", written.message())));
    }
    operations_changed_ = true;
    LogInfo("operation ", id, " begins");
  }
  if (call.wait) {
    operation_waiters_.emplace_back(id, std::move(call.callback));
  } else {
    operation_answers_.emplace_back(
        [callback = std::move(call.callback),
         answer = OperationAnswer{judged.verdict, *FindOperation(id)}] {
          callback(answer);
        });
  }
  if (begins) Perform(call.operation);
}

void EngineHost::Perform(const Operation& operation) {
  switch (operation.kind) {
    case OperationKind::kLayout:
      return TakeLayout({operation.choice, EndsOperation(operation.id)});
    case OperationKind::kDrain: {
      {
        absl::MutexLock lock(&mutex_);
        draining_ = true;
      }
      drain_operation_runs_ = true;
      return NoteDrain();
    }
    case OperationKind::kUndrain:
      return TakeUndrainOperation(operation.id);
  }
}

// As Perform(), while the group is not running yet: a switch waits for that.
void EngineHost::Repeat(const Operation& operation) {
  if (operation.kind != OperationKind::kLayout) return Perform(operation);
  LayoutRequest request{operation.choice, EndsOperation(operation.id)};
  if (absl::Status there = CheckChoice(request.choice); !there.ok()) {
    return request.callback(there);
  }
  const std::optional<Layout> target = Choose(request);
  if (!target.has_value()) return;
  switches_->Enqueue(*target, SwitchCause::kOperator,
                     std::move(request.callback));
}

void EngineHost::TakeUndrainOperation(const std::string& id) {
  const absl::Status status = Undrain();
  if (status.ok()) {
    NoteDrain();
    EndDrainOperations(/*drained=*/false);
  }
  EndOperation(id, OperationKind::kUndrain, {.status = status});
}

SwitchCallback EngineHost::EndsOperation(const std::string& id) {
  return [this, id](absl::StatusOr<SwitchReport> report) {
    OperationResult result;
    if (report.ok()) {
      result.report = *std::move(report);
    } else {
      result.status = report.status();
    }
    EndOperation(id, OperationKind::kLayout, result);
  };
}

void EngineHost::EndOperation(const std::string& id, OperationKind kind,
                              const OperationResult& result) {
  // How it ends is for the next coordinator to say.
  if (failed_) return;
  OperationEnd end;
  if (options_.answer_operation) end = options_.answer_operation(kind, result);
  end.unix_ms = options_.unix_ms ? options_.unix_ms() : 0;
  if (absl::Status noted = Note(journal::OperationEnded{id, std::move(end)});
      !noted.ok()) {
    LogError("journal: ", noted.ToString());
    return;
  }
  operations_changed_ = true;
  const KnownOperation ended = *FindOperation(id);
  LogInfo("operation ", id, " has ended with ", ended.end->http_status);
  for (auto& [waits_for, callback] : operation_waiters_) {
    if (waits_for != id) continue;
    operation_answers_.emplace_back([callback = std::move(callback), ended] {
      callback(OperationAnswer{OperationVerdict::kKnown, ended});
    });
    waits_for.clear();  // an operation's id is never empty
  }
  std::erase_if(operation_waiters_,
                [](const auto& waiter) { return waiter.first.empty(); });
}

void EngineHost::EndDrainOperations(bool drained) {
  if (!std::exchange(drain_operation_runs_, false)) return;
  std::vector<std::string> ids;
  for (const KnownOperation& one : options_.journal->state().operations()) {
    if (one.operation.kind != OperationKind::kDrain || one.end.has_value()) {
      continue;
    }
    ids.push_back(one.operation.id);
  }
  for (const std::string& id : ids) {
    EndOperation(id, OperationKind::kDrain, {.drained = drained});
  }
}

void EngineHost::EndDrainsIfDrained() {
  if (!drain_operation_runs_ || !answering_.empty()) return;
  {
    absl::MutexLock lock(&mutex_);
    if (!inbox_.submissions.empty()) return;
  }
  EndDrainOperations(/*drained=*/true);
}

// So that a later coordinator takes no requests either. The drain that ends the
// group is the launcher's, who tells a later one by himself.
void EngineHost::NoteDrain() {
  if (options_.journal == nullptr || !scheduler_.has_value()) return;
  bool draining = false;
  {
    absl::MutexLock lock(&mutex_);
    if (ending_) return;
    draining = draining_;
  }
  if (draining == options_.journal->state().draining()) return;
  if (absl::Status noted = Note(journal::DrainSet{draining}); !noted.ok()) {
    LogError("journal: ", noted.ToString());
  }
}

void EngineHost::ResumeOperations() {
  const JournalState& state = options_.journal->state();
  if (state.draining()) {
    absl::MutexLock lock(&mutex_);
    draining_ = true;
  }
  const std::vector<KnownOperation> known = state.operations();
  operations_changed_ = !known.empty();
  for (const KnownOperation& one : known) {
    if (one.end.has_value()) continue;
    const Operation& operation = one.operation;
    const std::optional<Layout> target = TargetOf(operation.choice);
    LogInfo("operation ", operation.id, " of an earlier coordinator goes on");
    switch (HowToResume(one, target, state)) {
      case OperationResume::kRepeat:
        Repeat(operation);
        break;
      case OperationResume::kAwaitSwitch:
        switches_->WaitForCurrent(EndsOperation(operation.id));
        break;
      case OperationResume::kSwitchDone: {
        SwitchReport report;
        report.epoch = state.decided();
        report.to = *target;
        report.num_ranks = group_.num_ranks();
        report.from = state.left().value_or(*target);
        report.cause = SwitchCause::kEarlierCoordinator;
        report.began_unix_ms = one.began_unix_ms;
        report.ended_unix_ms = options_.unix_ms ? options_.unix_ms() : 0;
        report.done = true;
        EndsOperation(operation.id)(report);
        break;
      }
    }
  }
}

void EngineHost::AnswerOperations() {
  for (auto& answer : std::exchange(operation_answers_, {})) answer();
}

// Who waits for an operation hears that this coordinator will not tell.
void EngineHost::ForsakeOperationWaiters() {
  for (auto& [id, callback] : std::exchange(operation_waiters_, {})) {
    callback(absl::UnavailableError("the group ended"));
  }
}

}  // namespace moebius
