// What the files of planted bugs have in common: how a bug is made of
// functions.
#pragma once

#include <functional>
#include <memory>
#include <utility>
#include <variant>
#include <vector>

#include "tests/simulation/mutants.h"

namespace moebius::simulation {

inline constexpr int kLayers = 3;  // of the simulated models

// A mutant made of functions; those that are null do nothing.
class FromFunctions : public Mutant {
 public:
  std::function<bool(Rank, wire::CommandMessage&)> command;
  std::function<bool(Rank, wire::ReportMessage&)> report;
  std::function<bool(Rank, Incarnation, wire::CommandMessage&)> taken;
  std::function<void(SimulatedWorker&, FaultId, VaultStore&)> at_point;
  std::function<bool(SimulatedWorker&)> early;
  std::function<EngineBug(Rank)> engine;
  std::function<void(Rank, RegionKind, VaultStore&,
                     absl::StatusOr<RegionDescriptor>&)>
      withdraw;
  std::function<void(std::vector<Output>&)> outputs;
  std::function<void(SimDisk&)> coordinator_lost;
  bool spares = false;
  bool never_syncs = false;
  bool keeps_check = false;

  bool OnCommand(Rank rank, wire::CommandMessage& message, bool&) override {
    return command && command(rank, message);
  }
  bool OnReport(Rank rank, wire::ReportMessage& message, bool&) override {
    return report && report(rank, message);
  }
  bool OnTaken(Rank rank, Incarnation incarnation,
               wire::CommandMessage& message, bool&) override {
    return taken && taken(rank, incarnation, message);
  }
  void OnFaultPoint(SimulatedWorker& worker, FaultId id,
                    VaultStore& store) override {
    if (at_point) at_point(worker, id, store);
  }
  bool PassesEarly(SimulatedWorker& worker) override {
    return early && early(worker);
  }
  EngineBug OnEngine(Rank rank) override {
    return engine ? engine(rank) : EngineBug::kNone;
  }
  void OnWithdraw(Rank rank, RegionKind kind, VaultStore& store,
                  absl::StatusOr<RegionDescriptor>& kept) override {
    if (withdraw) withdraw(rank, kind, store, kept);
  }
  void OnOutputs(std::vector<Output>& all) override {
    if (outputs) outputs(all);
  }
  void OnCoordinatorLost(SimDisk& disk) override {
    if (coordinator_lost) coordinator_lost(disk);
  }
  bool KeepsCheck() override { return keeps_check; }
  bool NeverSyncs() override { return never_syncs; }
  bool SparesTheDead() override { return spares; }
};

using Make = std::function<std::unique_ptr<Mutant>(uint64_t)>;

inline Make OfCommands(
    std::function<bool(Rank, wire::CommandMessage&)> change) {
  return [change](uint64_t) {
    auto mutant = std::make_unique<FromFunctions>();
    mutant->command = change;
    return mutant;
  };
}
// Changes the commands of one kind.
template <typename T>
Make Of(std::function<bool(Rank, T&)> change) {
  return OfCommands([change](Rank rank, wire::CommandMessage& message) {
    auto* const body = std::get_if<T>(&message.command);
    return body != nullptr && change(rank, *body);
  });
}
template <typename T>
Make OfReports(std::function<bool(Rank, T&)> change) {
  return [change](uint64_t) {
    auto mutant = std::make_unique<FromFunctions>();
    mutant->report = [change](Rank rank, wire::ReportMessage& message) {
      auto* const body = std::get_if<T>(&message.report);
      return body != nullptr && change(rank, *body);
    };
    return mutant;
  };
}
inline Make OfWithdrawals(std::function<void(Rank, RegionKind, VaultStore&,
                                             absl::StatusOr<RegionDescriptor>&)>
                              change) {
  return [change](uint64_t) {
    auto mutant = std::make_unique<FromFunctions>();
    mutant->withdraw = change;
    return mutant;
  };
}
inline Make OfOutputs(
    std::function<void(std::vector<Output>&, uint64_t&)> change) {
  return [change](uint64_t) {
    auto mutant = std::make_unique<FromFunctions>();
    mutant->outputs = [change,
                       count = uint64_t{0}](std::vector<Output>& all) mutable {
      change(all, count);
    };
    return mutant;
  };
}

// Of switches, of the side of the slots, and of the check after a switch.
void AddSwitches(std::vector<MutantInfo>& all);
// Of the layouts between EP and TP.
void AddLayouts(std::vector<MutantInfo>& all);
// Of the text stage.
void AddText(std::vector<MutantInfo>& all);
// Of steps that are issued and collected.
void AddSteps(std::vector<MutantInfo>& all);

}  // namespace moebius::simulation
