#include "worker/worker_loop.h"

#include <spdlog/spdlog.h>

#include <chrono>
#include <utility>
#include <variant>

#include "absl/strings/str_cat.h"
#include "common/cat.h"
#include "common/status_macros.h"

namespace moebius {

WorkerLoop::WorkerLoop(const Context& context) : context_(context) {}

absl::Status WorkerLoop::Send(Report report) {
  ReportMessage message;
  message.envelope = Envelope{term_, context_.incarnation, next_out_};
  message.report = std::move(report);
  RETURN_IF_ERROR(context_.link->Send(Encode(message)));
  ++next_out_;
  return absl::OkStatus();
}

absl::Status WorkerLoop::Run(const volatile std::sig_atomic_t* stop) {
  RETURN_IF_ERROR(Send(context_.hello));
  while (!shut_down_ && *stop == 0) {
    ASSIGN_OR_RETURN(const auto bytes,
                     context_.link->Receive(context_.poll_ms));
    if (!bytes.has_value()) continue;
    const absl::Status status = Handle(*bytes);
    if (status.ok()) continue;
    const StepId last{next_step_.value == 0 ? 0 : next_step_.value - 1};
    if (absl::Status sent = Send(Fault{last, std::string(status.message())});
        !sent.ok()) {
      spdlog::warn("the coordinator was not told: {}", sent.ToString());
    }
    return status;
  }
  return absl::OkStatus();
}

absl::Status WorkerLoop::Handle(const std::string& bytes) {
  ASSIGN_OR_RETURN(CommandMessage message, DecodeCommand(bytes));
  const Envelope& envelope = message.envelope;
  if (envelope.incarnation != context_.incarnation ||
      (welcomed_ && envelope.term != term_)) {
    spdlog::warn("dropped a command of term {} for incarnation {}",
                 envelope.term.value, envelope.incarnation.value);
    return absl::OkStatus();
  }
  if (envelope.sequence < next_in_) return absl::OkStatus();
  if (envelope.sequence > next_in_) {
    return absl::DataLossError(absl::StrCat("command ", next_in_, " was lost"));
  }
  ++next_in_;
  const bool welcome = std::holds_alternative<Welcome>(message.command);
  if (!welcomed_ && !welcome &&
      !std::holds_alternative<Shutdown>(message.command)) {
    return absl::FailedPreconditionError("a command before the welcome");
  }
  if (welcome) term_ = envelope.term;
  return std::visit([this](auto& command) { return On(command); },
                    message.command);
}

absl::Status WorkerLoop::On(const Welcome& welcome) {
  if (welcome.layout.attention != context_.switches->layout() ||
      welcome.layout.experts != context_.switches->layout()) {
    return absl::FailedPreconditionError(
        Cat("welcomed in ", LayoutName(welcome.layout.attention),
            " with weights in ", LayoutName(context_.switches->layout())));
  }
  welcomed_ = true;
  next_step_ = welcome.next_step;
  return absl::OkStatus();
}

absl::Status WorkerLoop::On(const StepPlan& plan) {
  if (plan.step != next_step_) {
    return absl::FailedPreconditionError(absl::StrCat(
        "step ", plan.step.value, " where ", next_step_.value, " was next"));
  }
  const Layout layout = context_.switches->layout();
  if (plan.layout.attention != layout || plan.layout.experts != layout) {
    return absl::FailedPreconditionError(
        absl::StrCat("step ", plan.step.value,
                     " is planned in another layout "
                     "than the one we are in"));
  }
  const auto begin = std::chrono::steady_clock::now();
  ASSIGN_OR_RETURN(StepResult result, context_.steps->Execute(plan));
  result.duration_us = static_cast<uint32_t>(
      std::chrono::duration_cast<std::chrono::microseconds>(
          std::chrono::steady_clock::now() - begin)
          .count());
  context_.signals->progress.step.store(plan.step.value,
                                        std::memory_order_release);
  next_step_ = next_step_.next();
  // The step ended with a barrier, so what rank 0 says of it holds for all.
  return context_.rank == 0 ? Send(std::move(result)) : absl::OkStatus();
}

absl::Status WorkerLoop::On(Prepare& prepare) {
  return Send(context_.switches->Prepare(std::move(prepare)));
}

absl::Status WorkerLoop::On(const Commit& commit) {
  // Steps and commits share one channel, so every step before the boundary has
  // been executed.
  if (commit.boundary != next_step_) {
    return absl::FailedPreconditionError(
        absl::StrCat("a switch at step ", commit.boundary.value, " where ",
                     next_step_.value, " is next"));
  }
  ASSIGN_OR_RETURN(const Switched switched, context_.switches->Commit(commit));
  return Send(switched);
}

absl::Status WorkerLoop::On(const Abort& abort) {
  context_.switches->Abort(abort.epoch);
  return absl::OkStatus();
}

absl::Status WorkerLoop::On(const Shutdown&) {
  shut_down_ = true;
  return absl::OkStatus();
}

}  // namespace moebius
