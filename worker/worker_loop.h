// A worker's life after loading: commands in, reports out, in order.
#pragma once

#include <csignal>
#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "common/channel.h"
#include "common/wire.h"
#include "worker/step_executor.h"
#include "worker/switch_executor.h"

namespace moebius {

// WorkerLoop
//
// Obeys: executes plans and switches in the order of the channel, checks term
// and sequence of each message, drops repeated ones. Ends with OK after
// Shutdown, and with an error (which it reports to the coordinator first) when
// it cannot go on.
// Threading: Run() on one thread; it waits in the channel, without using the
// processor.
class WorkerLoop {
 public:
  struct Context {
    Rank rank = 0;
    Incarnation incarnation;
    Hello hello;
    Link* link = nullptr;
    StepExecutor* steps = nullptr;
    SwitchExecutor* switches = nullptr;
    SignalsBlock* signals = nullptr;
    // Time that a stop signal may take to be seen.
    int poll_ms = 200;
  };
  explicit WorkerLoop(const Context& context);

  // Until Shutdown, an error, or `*stop` becomes true (which counts as an
  // orderly end).
  absl::Status Run(const volatile std::sig_atomic_t* stop);

 private:
  absl::Status Send(Report report);
  absl::Status Handle(const std::string& bytes);
  absl::Status On(const Welcome& welcome);
  absl::Status On(const StepPlan& plan);
  absl::Status On(Prepare& prepare);
  absl::Status On(const Commit& commit);
  absl::Status On(const Abort& abort);
  absl::Status On(const Shutdown& shutdown);

  Context context_;
  bool welcomed_ = false;
  bool shut_down_ = false;
  Term term_;
  uint64_t next_in_ = 1;
  uint64_t next_out_ = 1;
  StepId next_step_;
};

}  // namespace moebius
