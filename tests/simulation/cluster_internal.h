// What Play() is made of. Only for the files cluster*.cc.
#pragma once

#include <array>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "tests/simulation/cluster.h"
#include "tests/simulation/disk.h"
#include "tests/simulation/text_stage.h"
#include "tests/simulation/tiny_model.h"

namespace moebius::simulation {

// How a coordinator dies at a fault point: nothing of it goes on.
struct CoordinatorKilled {};

// Cluster
//
// cluster.cc           launcher, coordinator, workers, and a run of them
// cluster_faults.cc    what goes wrong, and what must be well in the end
class Cluster final : public WorkerSite, public FaultHandler {
 public:
  Cluster(const Options& options, const RunOptions& run,
          const std::vector<Answer>* answers);
  ~Cluster() override;

  // All requests come at once, and nothing else happens.
  void AskEverything() { ask_everything_ = true; }
  Outcome Run();

 private:
  class SimHub;

  // ---- the machine
  void PowerUp();
  // Every process is gone, all memory, and what was not synced; soon the
  // machine is up again, and a new launcher starts the group.
  void LosePower();
  void FillDisk(int64_t duration_us);
  // Not if the run ends or power is lost until then.
  void Later(int64_t delay_us, std::function<void()> action);

  // ---- the launcher
  void StartCoordinator();
  void StartWorker(Rank rank, bool adopt);
  void StartSuccessor(Rank rank);
  void Handle(const GroupEvent& event);
  void Apply(const GroupEffect& effect);
  bool serving() const {
    return std::holds_alternative<GroupServing>(launcher_);
  }
  void ReplaceWorker(Rank rank, Incarnation incarnation);

  // ---- the coordinator
  void Hear(std::vector<Output> outputs);
  void PlanText();
  // SIGKILL: it is gone, with all that it had not written.
  void LoseCoordinator(const char* why);
  void DropCoordinator(bool power_lost);
  absl::Status OpenJournal();
  void WakeCoordinator(int64_t delay_us);
  void Turn();
  absl::Status SendCommand(Rank rank, Incarnation incarnation,
                           std::string_view bytes);
  std::vector<Hub::Message> TakeReports();
  void Order(LayoutChoice choice);
  void CheckSlots(const char* when, Rank rank);

  // ---- what happens to them
  void Begin();
  void TellScript();
  void PlanWork();
  Wish MakeWish();
  void PlanFaults();
  void Heal();
  void LookWhetherDone();
  void CheckIdle();
  void StopAll();

  // ---- WorkerSite
  World& world() override { return world_; }
  Network& network() override { return network_; }
  VaultStore& store() override { return store_; }
  int64_t Jitter(int64_t low_us, int64_t high_us) override {
    return order_rng_.Between(low_us, high_us);
  }
  void BeforeSlice(SimulatedWorker& worker) override;
  void AfterSlice(SimulatedWorker& worker) override;
  void OnReady(SimulatedWorker& worker) override;
  void OnEnded(SimulatedWorker& worker, const absl::Status* returned) override;
  absl::Status OnFaultPoint(SimulatedWorker& worker, FaultId id) override;
  absl::Status OnCoordinatorFaultPoint(FaultId id);
  bool OnTake(SimulatedWorker& worker, std::string& bytes) override;
  bool OnSend(SimulatedWorker& worker, std::string& bytes) override;
  bool KeepsCheck() override {
    return mutant_ != nullptr && mutant_->KeepsCheck();
  }
  DeviceWhims OnStep(SimulatedWorker& worker) override;
  EngineBug BugOf(SimulatedWorker& worker) override {
    return mutant_ == nullptr ? EngineBug::kNone
                              : mutant_->OnEngine(worker.rank());
  }
  bool PassesEarly(SimulatedWorker& worker) override {
    return mutant_ != nullptr && mutant_->PassesEarly(worker);
  }
  absl::StatusOr<RegionDescriptor> Withdraw(SimulatedWorker& worker,
                                            RegionKind kind) override;

  // ---- FaultHandler
  absl::Status OnFaultPoint(FaultId id) override;

  const Options options_;
  const RunOptions run_;
  Script* const script_;  // null: there is none
  TinyModel& model_;
  const Config config_;
  const int num_descriptors_;  // before anything began
  World world_;
  Rng fault_rng_, order_rng_, work_rng_;
  Network network_;
  VaultStore store_;
  Observer observer_;
  Front front_;
  std::unique_ptr<Mutant> mutant_;

  SupervisionPolicy policy_;
  GroupState launcher_;
  std::array<uint64_t, kMaxRanks> num_incarnations_{};
  std::vector<std::unique_ptr<SimulatedWorker>>
      workers_;  // all there ever were
  std::array<SimulatedWorker*, kMaxRanks> current_{};
  std::array<bool, kMaxRanks> error_injected_{};
  // Has memory in which no weights are yet.
  std::array<bool, kMaxRanks> empty_{};

  SimDisk disk_;
  std::unique_ptr<Journal> journal_;
  std::unique_ptr<EngineHost> engine_;
  SimTextStage* text_ = nullptr;  // the engine's
  uint64_t num_coordinators_ = 0;
  uint64_t boot_ = 0;
  int64_t coordinator_born_us_ = 0;
  bool disk_failed_ = false;  // in this term
  int64_t turn_at_us_ = -1;
  uint64_t turn_ticket_ = 0;
  int64_t coordinator_frozen_until_us_ = 0;
  int64_t disk_full_until_us_ = 0;
  uint64_t switches_seen_ = 0;
  int orders_open_ = 0;

  bool begun_ = false;
  bool ready_once_ = false;    // since power was lost
  bool engine_ready_ = false;  // in this term
  bool ask_everything_ = false;
  bool faults_on_ = false;
  bool healed_ = false;
  bool ending_ = false;
  bool done_ = false;
  int crashes_ = 0;
  size_t probe_ = 0;
  int64_t healed_us_ = 0;
};

}  // namespace moebius::simulation
