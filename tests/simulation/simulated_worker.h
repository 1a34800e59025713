// A worker of the simulation: the production worker on a fiber.
#pragma once

#include <csignal>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "common/faults/fault_point.h"
#include "tests/simulation/fiber.h"
#include "tests/simulation/network.h"
#include "tests/simulation/vault.h"
#include "tests/simulation/world.h"
#include "worker/worker.h"

namespace moebius::simulation {

class SimulatedEngine;
class SimulatedWorker;

// How a device treats a step.
struct DeviceWhims {
  int64_t compute_us = 0;  // before its first barrier
  int64_t late_us = 0;     // from its end until it can be collected
  bool tells = true;       // wakes the host then
  bool hangs = false;      // it never ends
};

// Planted bugs of a step engine.
enum class EngineBug {
  kNone,
  kSwapsResults,     // gives a result before the one that was due
  kHidesError,       // tells a step that failed as done
  kRunsBehindError,  // executes what was issued behind an error
  kRunsInNextRound,  // the same, before the next step that is issued
  kSkipsWaiting,     // says that all is done while it is not
};

// What surrounds a worker.
class WorkerSite {
 public:
  virtual ~WorkerSite() = default;
  virtual World& world() = 0;
  virtual Network& network() = 0;
  virtual VaultStore& store() = 0;
  // A number from low to high, for the order in which things happen.
  virtual int64_t Jitter(int64_t low_us, int64_t high_us) = 0;

  virtual void BeforeSlice(SimulatedWorker& worker) = 0;
  virtual void AfterSlice(SimulatedWorker& worker) = 0;
  virtual void OnReady(SimulatedWorker& worker) = 0;
  // RunWorker has returned; or the worker was killed (nothing).
  virtual void OnEnded(SimulatedWorker& worker,
                       const absl::Status* returned) = 0;
  // Reached while the worker runs. It may be killed or frozen then.
  virtual absl::Status OnFaultPoint(SimulatedWorker& worker, FaultId id) = 0;
  // A message that the worker takes, and one that it sends; false: not at all.
  virtual bool OnTake(SimulatedWorker& worker, std::string& bytes) = 0;
  virtual bool OnSend(SimulatedWorker& worker, std::string& bytes) = 0;
  // The worker's device begins a step.
  virtual DeviceWhims OnStep(SimulatedWorker& worker) = 0;
  virtual EngineBug BugOf(SimulatedWorker& worker) = 0;
  // A planted bug: the barrier is passed though not all are there.
  virtual bool PassesEarly(SimulatedWorker& worker) = 0;
  // A planted bug: a check of the weights goes on though a switch begins, and
  // its sum is told as that of the switch.
  virtual bool KeepsCheck() = 0;
  // A planted bug in what the vault hands out.
  virtual absl::StatusOr<RegionDescriptor> Withdraw(SimulatedWorker& worker,
                                                    RegionKind kind) = 0;
};

// SimulatedWorker
//
// Two fibers, one for the loop and one for its device. Each runs in slices,
// every one an event of the world, and waits between them: for a message, for
// work, at a barrier, for a peer's memory, or for nothing but time.
class SimulatedWorker final : public WorkerHost {
 public:
  SimulatedWorker(WorkerSite* site, const WorkerOptions& options);
  ~SimulatedWorker() override;

  void Start();
  // SIGKILL: never runs again. What its process held is given back.
  // REQUIRES: not running.
  void Kill();
  // SIGKILL by its own hand, while running.
  [[noreturn]] void Crash();
  // SIGSTOP, until then.
  void Freeze(int64_t until_us);
  // SIGTERM.
  void Stop();

  Rank rank() const { return options_.rank; }
  Incarnation incarnation() const { return options_.incarnation; }
  int64_t born_us() const { return born_us_; }
  bool over() const { return over_; }
  bool frozen() const;
  int64_t frozen_until_us() const { return frozen_until_us_; }
  bool unwinding() const { return unwinding_; }

  // Runs the worker's code; then what it did may let others go on.
  void Deliver(std::string bytes);
  // Whether it waits at a barrier that would end now.
  bool BarrierEnds() const;
  void WakeFromBarrier();

  // ---- from inside, for the fiber that runs
  void Sleep(int64_t delay_us);
  // Waits until woken.
  void Park();

  // ---- for the step engine, in either fiber
  void BeginEngine(SimulatedEngine* engine, std::function<void()> body);
  // Lets its fiber run to its end. REQUIRES: in the loop's.
  void EndEngine();
  void WakeEngine();
  // Something can be collected at engine->TellsAt().
  void OnCompletion();
  void OnStepEnded();
  void ParkUntilStepEnded();

  MemoryVault& vault() override;
  absl::StatusOr<std::unique_ptr<Link>> Connect() override;
  std::unique_ptr<CpuFence> MakeFence(
      absl::Span<std::byte* const> signals) override;
  absl::StatusOr<std::unique_ptr<StepEngine>> MakeStepEngine(
      StepRunner* runner) override;
  std::unique_ptr<WeightCheck> MakeWeightCheck(
      const ExpertShape& shape, Rank rank, const std::byte* experts) override;
  void OnProgress(int64_t, int64_t) override {}
  absl::Status OnReady() override;
  void OnFailed(const absl::Status&) override {}

 private:
  class VaultEnd;
  class LinkEnd;
  class FenceEnd;
  class LateCheck;
  struct Killed {};

  // A fiber and what it waits for.
  struct Strand {
    explicit Strand(std::function<void()> body) : fiber(std::move(body)) {}
    Fiber fiber;
    uint64_t ticket = 0;      // of the events that may resume it
    uint64_t at_barrier = 0;  // its number; 0: at none
    bool barrier_woken = false;
  };
  enum Which { kLoop, kEngine };

  void Main();
  void Run(Which which, uint64_t ticket);
  void Slice(Strand& strand);
  // Runs the strand, from outside or from the other.
  void Resume(Strand& strand);
  // Wakes it from the Park that it is in, or is about to enter.
  void WakeAt(Which which, int64_t time_us);
  Which Running() const;
  const Strand* StrandAtBarrier() const;

  WorkerSite* const site_;
  const WorkerOptions options_;
  const int64_t born_us_;
  std::unique_ptr<Strand> strands_[2];  // by Which; the engine's may be none
  Strand* running_ = nullptr;
  uint64_t next_ticket_ = 1;
  SimulatedEngine* engine_ = nullptr;
  std::unique_ptr<VaultEnd> vault_;
  volatile std::sig_atomic_t stop_ = 0;
  bool over_ = false;
  bool doomed_ = false;
  bool unwinding_ = false;
  std::optional<absl::Status> returned_;
  int64_t frozen_until_us_ = 0;

  std::deque<std::string> inbox_;
  bool wants_message_ = false;
  bool wants_step_end_ = false;
  std::vector<SignalsBlock*> signals_;
};

// The worker that runs now; null: none does.
SimulatedWorker* RunningWorker();

}  // namespace moebius::simulation
