// A worker of the simulation: the production worker on a fiber.
#pragma once

#include <csignal>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "common/faults/fault_point.h"
#include "tests/simulation/fiber.h"
#include "tests/simulation/network.h"
#include "tests/simulation/vault.h"
#include "tests/simulation/world.h"
#include "worker/worker.h"

namespace moebius::simulation {

class SimulatedWorker;

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
// Runs in slices, each an event of the world, and waits between them: for a
// message, at a barrier, for a peer's memory, or for nothing but time.
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

  // ---- from inside
  void Sleep(int64_t delay_us);

  MemoryVault& vault() override;
  absl::StatusOr<std::unique_ptr<Link>> Connect() override;
  std::unique_ptr<CpuFence> MakeFence(
      absl::Span<std::byte* const> signals) override;
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

  void Main();
  void Run(uint64_t ticket);
  // Waits until woken.
  void Park();
  // Wakes it from the Park that it is in, or is about to enter.
  void WakeAt(int64_t time_us);

  WorkerSite* const site_;
  const WorkerOptions options_;
  const int64_t born_us_;
  std::unique_ptr<Fiber> fiber_;
  std::unique_ptr<VaultEnd> vault_;
  volatile std::sig_atomic_t stop_ = 0;
  bool over_ = false;
  bool doomed_ = false;
  bool unwinding_ = false;
  std::optional<absl::Status> returned_;
  int64_t frozen_until_us_ = 0;
  uint64_t ticket_ = 1;

  std::deque<std::string> inbox_;
  bool wants_message_ = false;
  uint64_t at_barrier_ = 0;  // its number; 0: at none
  bool barrier_woken_ = false;
  std::vector<SignalsBlock*> signals_;
};

// The worker that runs now; null: none does.
SimulatedWorker* RunningWorker();

}  // namespace moebius::simulation
