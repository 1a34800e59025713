// A worker once it has its memory: commands in, reports out, in order.
#pragma once

#include <csignal>
#include <cstdint>
#include <functional>
#include <optional>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "common/channel/channel.h"
#include "common/wire/wire.h"
#include "worker/memory/signals.h"
#include "worker/peers/group_fence.h"
#include "worker/steps/sequence_table.h"
#include "worker/steps/step_engine.h"
#include "worker/switch/switch_executor.h"
#include "worker/switch/weight_check.h"

namespace moebius {

// WorkerLoop
//
// Obeys: executes plans and switches in the order of the channel, checks term
// and sequence of each message, drops repeated ones and those of other terms.
//
// Greeted by a coordinator, it obeys that one alone, and says Hello.
//
// Steps are issued to the engine as their plans come, and collected when they
// are done: several are under way. They are the only commands that are. Before
// any other is obeyed they come to their end, so that it finds all of them
// done, as if they had been executed one by one. What ends them is that every
// rank is through, the deadline of a barrier, or a peer that gives up.
//
// Halted, it obeys nothing but Load, Restore and Resume of the round: at the
// start, after Halt, and by itself when a step or switch cannot go on because a
// peer or a command did not come. Its tables are then replaced by what the
// coordinator sends; its memory stays as it is.
//
// Ends with OK after Shutdown, and with an error (which it reports to the
// coordinator first) when it disagrees with the coordinator or its own memory:
// a successor with empty tables is what helps then.
// Threading: Run() on one thread; it waits for the channel and for completions,
// without using the processor.
class WorkerLoop {
 public:
  struct Context {
    Rank rank = 0;
    Incarnation incarnation;
    wire::Hello hello;
    Link* link = nullptr;
    StepEngine* engine = nullptr;
    SwitchExecutor* switches = nullptr;
    SequenceTable* sequences = nullptr;
    GroupFence* fence = nullptr;
    SignalsBlock* signals = nullptr;
    WeightCheck* check = nullptr;
    // Fills our memory with weights; the bytes, and the checksum of our part.
    std::function<absl::StatusOr<wire::Loaded>(const wire::Load&)> load;
    // Sees to it that we see those memories: [rank] the incarnation that made
    // it.
    std::function<absl::Status(absl::Span<const Incarnation>)> meet;
    // Hears why Run is about to end, before the coordinator does.
    std::function<void(const absl::Status&)> on_failed;
    // Time that a stop signal may take to be seen.
    int poll_ms = 200;
  };
  explicit WorkerLoop(const Context& context);

  // Until Shutdown, an error, or `*stop` becomes true (which counts as an
  // orderly end).
  absl::Status Run(const volatile std::sig_atomic_t* stop);

 private:
  absl::Status Serve(const volatile std::sig_atomic_t* stop);
  void Send(wire::Report report);
  absl::Status Handle(const std::string& bytes);
  absl::Status Obey(wire::CommandMessage& message);
  // Halts where that helps; else the error that ends the worker, as reported.
  absl::Status Stumble(const absl::Status& why);

  bool under_way() const { return next_done_ != next_step_; }
  bool has_enough() const {
    return next_step_.value - next_done_.value >= StepEngine::kEnough;
  }
  // Takes the steps that are done, in order. An error ends those behind it.
  absl::Status Collect();
  absl::Status OnDone(StepResult result);
  // Waits for the first of the steps under way, or for all, and takes each when
  // it is done.
  absl::Status FinishOne();
  absl::Status Finish();
  // The same; halted if one of them was interrupted.
  absl::Status Settle();

  absl::Status OnGreet(const wire::Envelope& envelope);
  absl::Status OnHalt(const wire::Envelope& envelope, const wire::Halt& halt);
  // Commands of the present round, in order.
  absl::Status On(const wire::Greet& greet);
  absl::Status On(const wire::Halt& halt);
  absl::Status On(const wire::Load& load);
  absl::Status On(const wire::Restore& restore);
  absl::Status On(const wire::Resume& resume);
  absl::Status On(StepPlan& plan);
  absl::Status On(wire::Prepare& prepare);
  absl::Status On(const wire::Commit& commit);
  absl::Status On(const wire::Abort& abort);
  absl::Status On(const wire::Shutdown& shutdown);
  // After a switch: its figures, and later whether the weights are right.
  absl::Status SendSwitched(const wire::Switched& switched);
  void SendCheck();
  void BeginCheck();
  void GiveUpCheck();
  // Halts by itself.
  void Interrupt(const absl::Status& why);
  Stand WhereWeStand() const;

  Context context_;
  bool shut_down_ = false;
  Term term_;
  uint64_t round_ = 0;
  bool halted_ = true;
  bool restoring_ = false;              // a Restore of this round has come
  bool missed_ = false;                 // a command; nothing counts until Halt
  std::optional<wire::Loaded> loaded_;  // our answer to Load in this round
  std::optional<Epoch> check_due_;      // not begun yet
  uint64_t next_in_ = 1;
  uint64_t next_out_ = 1;
  StepId next_step_;  // to be issued
  StepId next_done_;  // to be collected; next_step_: nothing is under way
};

}  // namespace moebius
