// Planted bugs. Each is a small change at an interface of the production code,
// such as a slip in it would make, and some seed must find it.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "common/wire/wire.h"
#include "coordinator/engine/engine.h"
#include "coordinator/engine/text_stage.h"
#include "tests/simulation/disk.h"
#include "tests/simulation/options.h"
#include "tests/simulation/rng.h"
#include "tests/simulation/simulated_worker.h"

namespace moebius::simulation {

// What a planted bug may do. One object a run; it holds the bug's memory.
class Mutant {
 public:
  virtual ~Mutant() = default;

  // A command on its way to a worker, a report on its way to the coordinator.
  // True: it was changed. `drop`: it does not go out.
  virtual bool OnCommand(Rank, wire::CommandMessage&, bool&) { return false; }
  virtual bool OnReport(Rank, wire::ReportMessage&, bool&) { return false; }
  // A report as the hub hands it over, of whatever worker. True: changed.
  virtual bool OnHubReport(Rank, Incarnation& /*of the connection*/,
                           wire::ReportMessage&) {
    return false;
  }
  // A command as a worker takes it.
  virtual bool OnTaken(Rank, Incarnation, wire::CommandMessage&, bool&) {
    return false;
  }
  virtual void OnFaultPoint(SimulatedWorker&, FaultId, VaultStore&) {}
  virtual bool PassesEarly(SimulatedWorker&) { return false; }
  virtual EngineBug OnEngine(Rank) { return EngineBug::kNone; }
  // A check of weights goes on though the next switch begins.
  virtual bool KeepsCheck() { return false; }
  virtual void OnWithdraw(Rank, RegionKind, VaultStore&,
                          absl::StatusOr<RegionDescriptor>&) {}
  // Outputs on their way to the front.
  virtual void OnOutputs(std::vector<Output>&) {}
  // What the engine hands to its text stage, and what it hears back.
  virtual void OnText(TextBatch&) {}
  virtual void OnTextEnds(std::vector<TextEnd>&) {}
  // The text stage does not wait for the journal to have an end.
  virtual bool ShowsEndsEarly() { return false; }
  // The coordinator has just died.
  virtual void OnCoordinatorLost(SimDisk&) {}
  // Commits of the journal are not synced.
  virtual bool NeverSyncs() { return false; }
  // A successor starts though its predecessor, frozen, was not killed.
  virtual bool SparesTheDead() { return false; }
};

struct MutantInfo {
  std::string_view name;
  std::string_view what;
  std::function<std::unique_ptr<Mutant>(uint64_t seed)> make;
};
const std::vector<MutantInfo>& AllMutants();
// nullptr for a name that none has.
const MutantInfo* FindMutant(std::string_view name);

}  // namespace moebius::simulation
