// The device of a simulated worker: production steps on a fiber of their own,
// whose results come when chance wants.
#pragma once

#include <cstdint>
#include <deque>
#include <optional>
#include <vector>

#include "tests/simulation/simulated_worker.h"
#include "worker/steps/step_engine.h"
#include "worker/steps/step_queue.h"
#include "worker/steps/step_runner.h"

namespace moebius::simulation {

// SimulatedEngine
//
// Runs on the second fiber of a worker. A result can be collected some time
// after its step, alone or with others, and the loop may not be told of it; a
// step may never end.
class SimulatedEngine final : public StepEngine {
 public:
  SimulatedEngine(SimulatedWorker* worker, WorkerSite* site,
                  StepRunner* runner);
  ~SimulatedEngine() override;

  void Issue(Batch batch) override;
  std::optional<StepEnd> Collect() override;
  void Await() override;
  void Drain() override;
  int completion_fd() const override { return -1; }

  // When the loop is to be woken, if it waits; nothing: no need.
  std::optional<int64_t> TellsAt() const;

 private:
  // When the next end in the queue can be collected.
  struct Arrival {
    int64_t at_us = 0;
    bool tells = true;
    std::optional<StepEnd> planted;  // in its place
  };

  void Main();
  void Execute(Batch batch);
  void Land(const DeviceWhims& whims, bool ok);
  // Of planted bugs.
  void Fail(StepId step, StepEnd& end);
  void PretendAll();
  std::vector<StepEnd> RunIssued();
  void ExecuteKept();

  SimulatedWorker* const worker_;
  WorkerSite* const site_;
  StepRunner* const runner_;
  StepQueue queue_;
  std::deque<Arrival> arrivals_;
  bool over_ = false;
  bool idle_ = true;     // an Issue wakes the fiber
  bool failed_ = false;  // the queue holds an error

  std::deque<Batch> issued_;     // a copy of each that has not ended
  std::deque<Batch> kept_;       // to be executed though they were dropped
  int pretended_ = 0;            // steps told as done that are not
  std::vector<StepEnd> behind_;  // of a step that fails, and told nevertheless
};

}  // namespace moebius::simulation
