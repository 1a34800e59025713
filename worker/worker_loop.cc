#include "worker/worker_loop.h"

#include <chrono>
#include <tuple>
#include <utility>
#include <variant>

#include "absl/strings/str_cat.h"
#include "common/base/logging.h"
#include "common/base/status_macros.h"
#include "common/faults/fault_point.h"

namespace moebius {

namespace {

// A peer did not come to a barrier, or gave up at it: nobody's memory is wrong.
bool IsInterruption(const absl::Status& status) {
  return absl::IsAborted(status) || absl::IsDeadlineExceeded(status);
}

}  // namespace

WorkerLoop::WorkerLoop(const Context& context) : context_(context) {}

// What cannot be sent is lost, which the coordinator sees by the numbers; if it
// is gone, its successor halts us.
void WorkerLoop::Send(wire::Report report) {
  wire::ReportMessage message;
  message.envelope = wire::Envelope{term_, context_.incarnation, next_out_++};
  message.report = std::move(report);
  if (absl::Status sent = context_.link->Send(Encode(message)); !sent.ok()) {
    LogWarn("a report was lost: ", sent.ToString());
  }
}

Stand WorkerLoop::WhereWeStand() const {
  const SwitchProgress progress = LoadSwitchProgress(*context_.signals);
  return Stand{
      StepId{context_.signals->progress.step.load(std::memory_order_relaxed)},
      context_.fence->abandoned(),
      progress.epoch,
      progress.side,
      progress.layers_done,
      progress.waves_done,
      context_.signals->progress.loaded.load(std::memory_order_relaxed) != 0,
      context_.signals->progress.weight_checksum.load(
          std::memory_order_relaxed),
      Epoch{context_.signals->progress.epochs_over.load(
          std::memory_order_relaxed)}};
}

// REQUIRES: nothing is under way.
void WorkerLoop::Interrupt(const absl::Status& why) {
  LogWarn("halted before step ", next_step_.value, ": ", why.ToString());
  context_.fence->Abandon();
  halted_ = true;
  Send(wire::Interrupted{next_step_, std::string(why.message())});
}

absl::Status WorkerLoop::Run(const volatile std::sig_atomic_t* stop) {
  const absl::Status status = Serve(stop);
  if (under_way()) {
    // Nobody hears of it any more, and peers may have gone before us.
    context_.fence->Abandon();
    context_.engine->Drain();
  }
  return status;
}

absl::Status WorkerLoop::Serve(const volatile std::sig_atomic_t* stop) {
  while (!shut_down_ && *stop == 0) {
    if (has_enough()) {
      RETURN_IF_ERROR(Stumble(FinishOne()));
      SendCheck();
      continue;
    }
    ASSIGN_OR_RETURN(const auto bytes,
                     context_.link->Receive(context_.poll_ms,
                                            context_.engine->completion_fd()));
    SendCheck();
    RETURN_IF_ERROR(Stumble(Collect()));
    if (!bytes.has_value() && !under_way()) BeginCheck();
    if (bytes.has_value()) RETURN_IF_ERROR(Stumble(Handle(*bytes)));
  }
  return absl::OkStatus();
}

absl::Status WorkerLoop::Stumble(const absl::Status& why) {
  if (why.ok()) return why;
  // What was issued before has its result first.
  if (const absl::Status rest = Finish(); !rest.ok()) {
    LogWarn("and the steps under way: ", rest.ToString());
  }
  if (IsInterruption(why)) {
    Interrupt(why);
    return absl::OkStatus();
  }
  context_.fence->Abandon();
  if (context_.on_failed) context_.on_failed(why);
  Send(wire::Fault{next_step_, std::string(why.message())});
  return why;
}

absl::Status WorkerLoop::Collect() {
  while (auto done = context_.engine->Collect()) {
    if (!done->status.ok()) {
      context_.engine->Drain();  // what is behind it is dropped
      next_step_ = next_done_;
      return done->status;
    }
    RETURN_IF_ERROR(OnDone(std::move(done->result)));
  }
  return absl::OkStatus();
}

absl::Status WorkerLoop::OnDone(StepResult result) {
  if (!under_way() || result.step != next_done_) {
    next_step_ = next_done_;  // nothing that it says counts any more
    return absl::InternalError(absl::StrCat("the engine has done step ",
                                            result.step.value, " where ",
                                            next_done_.value, " was next"));
  }
  context_.signals->progress.step.store(result.step.value,
                                        std::memory_order_release);
  context_.signals->progress.loaded.store(1, std::memory_order_relaxed);
  context_.sequences->NoteDone();
  next_done_ = next_done_.next();
  RETURN_IF_ERROR(FaultPoint(FaultId::kWorkerStepDone));
  // The step ended with a barrier, so what rank 0 says of it holds for all.
  if (context_.rank == 0) Send(std::move(result));
  BeginCheck();
  return absl::OkStatus();
}

absl::Status WorkerLoop::FinishOne() {
  const StepId before = next_done_;
  context_.engine->Await();
  RETURN_IF_ERROR(Collect());
  if (next_done_ != before) return absl::OkStatus();
  next_step_ = next_done_;
  return absl::InternalError(
      absl::StrCat("the engine has lost step ", next_done_.value));
}

absl::Status WorkerLoop::Finish() {
  while (under_way()) RETURN_IF_ERROR(FinishOne());
  return absl::OkStatus();
}

absl::Status WorkerLoop::Settle() {
  const absl::Status status = Finish();
  if (!IsInterruption(status)) return status;
  Interrupt(status);
  return absl::OkStatus();
}

absl::Status WorkerLoop::Handle(const std::string& bytes) {
  auto message = wire::DecodeCommand(bytes);
  if (!message.ok()) {
    LogWarn("dropped a command: ", message.status().ToString());
    return absl::OkStatus();
  }
  const wire::Envelope& envelope = message->envelope;
  if (envelope.incarnation != context_.incarnation || envelope.term < term_) {
    LogWarn("dropped a command of term ", envelope.term.value,
            " for incarnation ", envelope.incarnation.value);
    return absl::OkStatus();
  }
  if (std::holds_alternative<wire::Greet>(message->command)) {
    return OnGreet(envelope);
  }
  if (const auto* halt = std::get_if<wire::Halt>(&message->command)) {
    return OnHalt(envelope, *halt);
  }
  return Obey(*message);
}

absl::Status WorkerLoop::Obey(wire::CommandMessage& message) {
  const wire::Envelope& envelope = message.envelope;
  const wire::Command& command = message.command;
  if (envelope.term != term_ || envelope.sequence < next_in_) {
    return absl::OkStatus();  // late, or of a term that has not halted us yet
  }
  if (envelope.sequence > next_in_ ||
      !std::holds_alternative<StepPlan>(command)) {
    RETURN_IF_ERROR(Settle());
  }
  if (envelope.sequence > next_in_) {
    // Also where we have halted: it may be Resume that was lost, and the others
    // wait for us.
    if (!std::exchange(missed_, true)) {
      Interrupt(
          absl::DataLossError(absl::StrCat("command ", next_in_, " was lost")));
    }
    return absl::OkStatus();  // the next Halt mends it
  }
  ++next_in_;
  if (halted_ && !std::holds_alternative<wire::Load>(command) &&
      !std::holds_alternative<wire::Restore>(command) &&
      !std::holds_alternative<wire::Resume>(command) &&
      !std::holds_alternative<wire::Shutdown>(command)) {
    return absl::OkStatus();
  }
  return std::visit([this](auto& body) { return On(body); }, message.command);
}

absl::Status WorkerLoop::OnGreet(const wire::Envelope& envelope) {
  if (envelope.term > term_) {
    RETURN_IF_ERROR(Settle());
    // What an earlier coordinator began is for this one to end: nobody is to
    // wait for us in a step of it.
    if (term_.value != 0) context_.fence->Abandon();
    term_ = envelope.term;
    round_ = 0;
    halted_ = true;
    restoring_ = false;
    missed_ = false;
    next_in_ = envelope.sequence + 1;
  }
  Send(context_.hello);
  return absl::OkStatus();
}

absl::Status WorkerLoop::OnHalt(const wire::Envelope& envelope,
                                const wire::Halt& halt) {
  const auto now = std::pair(envelope.term, halt.round);
  const auto then = std::pair(term_, round_);
  if (now < then || (now == then && !halted_)) {
    return absl::OkStatus();  // late
  }
  // A copy of one that was answered must not make us count from it again: what
  // has come since would count as lost, and Resume with it.
  if (now == then && envelope.sequence < next_in_) return absl::OkStatus();
  RETURN_IF_ERROR(Settle());
  // A step or a Resume was lost before it: the others wait for us in a barrier
  // that we have not heard of, and hear no Halt there.
  if (envelope.term == term_ && envelope.sequence > next_in_ && !missed_) {
    context_.fence->Abandon();
  }
  if (now > then) loaded_.reset();
  missed_ = false;
  term_ = envelope.term;
  round_ = halt.round;
  next_in_ = envelope.sequence + 1;
  halted_ = true;
  restoring_ = false;
  RETURN_IF_ERROR(FaultPoint(FaultId::kWorkerHalted));
  wire::Halted halted{round_, WhereWeStand(), {}};
  if (halt.tell_sequences) halted.sequences = context_.sequences->Held();
  Send(std::move(halted));
  return absl::OkStatus();
}

absl::Status WorkerLoop::On(const wire::Greet&) {
  return absl::InternalError("Greet is no command of a round");
}

absl::Status WorkerLoop::On(const wire::Halt&) {
  return absl::InternalError("Halt is no command of a round");
}

absl::Status WorkerLoop::On(const wire::Load& load) {
  if (!halted_ || load.round != round_) return absl::OkStatus();
  // Said again, since it or our answer was lost or took long.
  if (!loaded_.has_value()) {
    GiveUpCheck();
    ASSIGN_OR_RETURN(loaded_, context_.load(load));
    loaded_->round = round_;
    StoreSwitchProgress(context_.signals,
                        SwitchProgress{load.epoch, load.experts.side,
                                       load.experts.layers_done, 0});
  }
  Send(*loaded_);
  return absl::OkStatus();
}

absl::Status WorkerLoop::On(const wire::Restore& restore) {
  if (!halted_ || restore.round != round_) return absl::OkStatus();
  if (!std::exchange(restoring_, true)) context_.sequences->Reset();
  for (const RestoredSequence& sequence : restore.sequences) {
    RETURN_IF_ERROR(context_.sequences->Put(sequence));
  }
  return FaultPoint(FaultId::kWorkerRestored);
}

absl::Status WorkerLoop::On(const wire::Resume& resume) {
  if (!halted_ || resume.round != round_) return absl::OkStatus();
  RETURN_IF_ERROR(FaultPoint(FaultId::kWorkerResumed));
  RETURN_IF_ERROR(context_.switches->GoOn(resume.experts, resume.last_epoch));
  RETURN_IF_ERROR(context_.meet(resume.memories));
  context_.signals->progress.weight_checksum.store(resume.weight_checksum,
                                                   std::memory_order_relaxed);
  // With a switch to finish, new memory counts only from the first step on:
  // until then a new coordinator would take pages for good that were given up.
  if (!resume.tail.has_value()) {
    context_.signals->progress.epochs_over.store(resume.last_epoch.value,
                                                 std::memory_order_relaxed);
    context_.signals->progress.loaded.store(1, std::memory_order_release);
  }
  if (!restoring_) context_.sequences->Reset();
  context_.fence->GoOn(resume.next_barrier);
  next_step_ = next_done_ = resume.next_step;
  halted_ = false;
  if (!resume.tail.has_value()) {
    if (resume.check_weights) {
      context_.check->Begin(resume.last_epoch, context_.switches->experts());
    }
    return absl::OkStatus();
  }
  GiveUpCheck();
  ASSIGN_OR_RETURN(const wire::Switched switched,
                   context_.switches->Finish(*resume.tail));
  return SendSwitched(switched);
}

absl::Status WorkerLoop::SendSwitched(const wire::Switched& switched) {
  RETURN_IF_ERROR(FaultPoint(FaultId::kWorkerSwitched));
  Send(switched);
  check_due_ = switched.epoch;
  return absl::OkStatus();
}

// The first step behind a switch has the device for itself: streams wait for
// it.
void WorkerLoop::BeginCheck() {
  if (halted_ || !check_due_.has_value()) return;
  context_.check->Begin(*std::exchange(check_due_, std::nullopt),
                        context_.switches->experts());
}

void WorkerLoop::GiveUpCheck() {
  check_due_.reset();
  context_.check->GiveUp();
}

// Halted, nobody would hear it: a coordinator that wants it asks again.
void WorkerLoop::SendCheck() {
  if (halted_) return;
  if (const auto sum = context_.check->Take()) {
    Send(wire::WeightsChecked{sum->epoch, sum->checksum});
  }
}

absl::Status WorkerLoop::On(StepPlan& plan) {
  if (plan.step != next_step_) {
    return absl::FailedPreconditionError(absl::StrCat(
        "step ", plan.step.value, " where ", next_step_.value, " was next"));
  }
  const ExpertsState& experts = context_.switches->experts();
  if (plan.layout != StepLayout{experts.to, experts}) {
    return absl::FailedPreconditionError(
        absl::StrCat("step ", plan.step.value,
                     " is planned in another layout than the one we are in"));
  }
  RETURN_IF_ERROR(FaultPoint(FaultId::kWorkerStep));
  ASSIGN_OR_RETURN(Batch batch, context_.sequences->Apply(std::move(plan)));
  context_.engine->Issue(std::move(batch));
  next_step_ = next_step_.next();
  return absl::OkStatus();
}

absl::Status WorkerLoop::On(wire::Prepare& prepare) {
  wire::Prepared prepared = context_.switches->Prepare(std::move(prepare));
  RETURN_IF_ERROR(FaultPoint(FaultId::kWorkerPrepare));
  Send(std::move(prepared));
  return FaultPoint(FaultId::kWorkerPrepared);
}

absl::Status WorkerLoop::On(const wire::Commit& commit) {
  // Steps and commits share one channel, and the steps before this one have
  // come to their end.
  if (commit.boundary != next_step_) {
    return absl::FailedPreconditionError(
        absl::StrCat("a switch at step ", commit.boundary.value, " where ",
                     next_step_.value, " is next"));
  }
  RETURN_IF_ERROR(FaultPoint(FaultId::kWorkerCommit));
  using Clock = std::chrono::steady_clock;
  const auto micros = [](Clock::duration time) {
    return std::chrono::duration_cast<std::chrono::microseconds>(time).count();
  };
  const auto begin = Clock::now();
  GiveUpCheck();
  const auto given_up = Clock::now();
  ASSIGN_OR_RETURN(const wire::Switched switched,
                   context_.switches->Commit(commit));
  const auto end = Clock::now();
  RETURN_IF_ERROR(SendSwitched(switched));
  LogDebug("switch ", commit.epoch.value, ": ", micros(given_up - begin),
           " us for the check before it, ", micros(end - given_up),
           " us in all, of these weights ", switched.weight_us, " and pages ",
           switched.kv_us);
  return absl::OkStatus();
}

absl::Status WorkerLoop::On(const wire::Abort& abort) {
  context_.switches->Abort(abort.epoch);
  return absl::OkStatus();
}

absl::Status WorkerLoop::On(const wire::Shutdown&) {
  shut_down_ = true;
  return absl::OkStatus();
}

}  // namespace moebius
