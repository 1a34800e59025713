// What goes wrong in a simulated group, and what must be well in the end.
#include <algorithm>
#include <string>

#include "common/base/cat.h"
#include "tests/simulation/cluster_internal.h"

namespace moebius::simulation {
namespace {

// After the faults have ended.
constexpr int64_t kServesAgainUs = 10'000'000;
constexpr int64_t kAllDoneUs = 60'000'000;
// Workers that are told to end.
constexpr int64_t kStopUs = 5'000'000;

enum class Stage { kStep, kSwitch, kRecovery };
Stage StageOf(FaultId id) {
  switch (id) {
    case FaultId::kWorkerPrepare:
    case FaultId::kWorkerPrepared:
    case FaultId::kWorkerCommit:
    case FaultId::kWorkerPull:
    case FaultId::kWorkerPulled:
    case FaultId::kWorkerPassed:
    case FaultId::kWorkerPages:
    case FaultId::kWorkerPagesPassed:
    case FaultId::kWorkerSwitched:
      return Stage::kSwitch;
    case FaultId::kWorkerAdopt:
    case FaultId::kWorkerHalted:
    case FaultId::kWorkerRestored:
    case FaultId::kWorkerResumed:
      return Stage::kRecovery;
    default:
      return Stage::kStep;
  }
}

// How long a fault lasts, in microseconds.
int64_t DurationOf(Rng& rng) {
  switch (rng.Int(0, 2)) {
    case 0:
      return rng.Between(1'000, 50'000);
    case 1:
      return rng.Between(50'000, 700'000);
    default:
      return rng.Between(700'000, 3'000'000);
  }
}

}  // namespace

// ---- what happens to them --------------------------------------------------

void Cluster::Begin() {
  world_.Note("serving", -1);
  if (script_ != nullptr) {
    front_.SubmitAt(world_.now_us() + 1'000, {script_->wish()}, -1);
    return LookWhetherDone();
  }
  PlanWork();
  if (ask_everything_) {
    world_.After(10'000, [this] { Heal(); });
    return;
  }
  network_.SetFaults(true);
  faults_on_ = true;
  PlanFaults();
  world_.After(int64_t{options_.fault_ms} * 1000, [this] { Heal(); });
}

void Cluster::PlanWork() {
  const int64_t now = world_.now_us();
  if (ask_everything_) {
    for (int ask = 0; ask < kNumAsks; ++ask) {
      Wish wish{ask, {}};
      wish.stop.max_tokens =
          AsksOf(options_.model)[static_cast<size_t>(ask)].max_tokens;
      front_.SubmitAt(now, {wish}, -1);
    }
    return;
  }
  for (int left = options_.num_choices; left > 0;) {
    const int choices =
        work_rng_.Chance(options_.many) ? work_rng_.Int(2, 4) : 1;
    std::vector<Wish> wishes;
    for (int i = 0; i < std::min(choices, left); ++i) {
      wishes.push_back(MakeWish());
      wishes.back().refused =
          options_.refused > 0 && work_rng_.Chance(options_.refused);
    }
    left -= choices;
    const int64_t at =
        now + work_rng_.Between(0, int64_t{options_.arrivals_ms} * 1000);
    const int64_t abort_after_us =
        work_rng_.Chance(options_.aborts) ? work_rng_.Between(0, 100'000) : -1;
    front_.SubmitAt(at, std::move(wishes), abort_after_us);
  }
  for (int i = 0; i < options_.switches; ++i) {
    const auto choice = work_rng_.Chance(0.1) ? LayoutChoice::kAuto
                                              : AnyLayout(work_rng_, options_);
    // While there is something to do.
    const int until_ms =
        std::min(options_.fault_ms, options_.arrivals_ms + 300);
    world_.After(work_rng_.Between(0, int64_t{until_ms} * 1000),
                 [this, choice] {
                   if (!ending_) Order(choice);
                 });
  }
}

Wish Cluster::MakeWish() {
  const int ask = work_rng_.Int(0, kNumAsks - 1);
  const auto index = static_cast<size_t>(ask);
  const int most = AsksOf(options_.model)[index].max_tokens;
  return simulation::MakeWish(work_rng_, ask, work_rng_.Int(1, most),
                              AnswersOf(options_.model)[index]);
}

void Cluster::PlanFaults() {
  Rng rng = fault_rng_.Fork();
  const int64_t end = int64_t{options_.fault_ms} * 1000;
  const auto rank = [&] { return rng.Int(0, options_.num_workers - 1); };
  for (int i = 0; i < options_.kills; ++i) {
    world_.After(rng.Between(0, end), [this, r = rank()] {
      if (!serving() || current_[r]->over() || !faults_on_) return;
      world_.CountFault("worker killed");
      world_.Note("killed", r);
      current_[r]->Kill();
    });
  }
  for (int i = 0; i < options_.pauses; ++i) {
    world_.After(rng.Between(0, end), [this, r = rank(), d = DurationOf(rng)] {
      if (current_[r]->over() || !faults_on_) return;
      world_.CountFault("worker paused");
      world_.Note("paused", r, static_cast<uint64_t>(d));
      current_[r]->Freeze(world_.now_us() + d);
    });
  }
  for (int i = 0; i < options_.coordinator_pauses; ++i) {
    world_.After(rng.Between(0, end), [this, d = DurationOf(rng)] {
      if (!faults_on_) return;
      world_.CountFault("coordinator paused");
      world_.Note("paused", -1, static_cast<uint64_t>(d));
      coordinator_frozen_until_us_ = world_.now_us() + d;
    });
  }
  for (int i = 0; i < options_.coordinator_kills; ++i) {
    world_.After(rng.Between(0, end), [this] {
      if (!serving() || engine_ == nullptr || !faults_on_ || !ready_once_) {
        return;
      }
      world_.CountFault("coordinator killed");
      LoseCoordinator("killed from outside");
    });
  }
  for (int i = 0; i < options_.power_losses; ++i) {
    world_.After(rng.Between(0, end), [this] {
      if (faults_on_) LosePower();
    });
  }
  for (int i = 0; i < options_.full_disks; ++i) {
    world_.After(rng.Between(0, end), [this, d = DurationOf(rng)] {
      if (faults_on_) FillDisk(d);
    });
  }
  for (int i = 0; i < options_.partitions; ++i) {
    world_.After(rng.Between(0, end), [this, r = rank(), d = DurationOf(rng),
                                       to_worker = rng.Chance(0.5)] {
      if (!faults_on_) return;
      world_.CountFault("partition");
      world_.Note("partition", r, to_worker, static_cast<uint64_t>(d));
      network_.Partition(r, to_worker, world_.now_us() + d);
    });
  }
}

// Faults end. A worker that is frozen goes on when its time is over.
void Cluster::Heal() {
  world_.Note("healed", -1);
  faults_on_ = false;
  healed_ = true;
  network_.SetFaults(false);
  front_.StopAborts();
  healed_us_ = world_.now_us();
  for (Rank r = 0; r < options_.num_workers; ++r) {
    if (current_[r]->frozen()) {
      healed_us_ = std::max(healed_us_, current_[r]->frozen_until_us());
    }
  }
  healed_us_ =
      std::max({healed_us_, coordinator_frozen_until_us_, disk_full_until_us_});
  if (!ask_everything_) {
    probe_ = front_.choices().size();
    Wish wish;
    wish.stop.max_tokens = 2;
    front_.SubmitAt(world_.now_us(), {wish}, -1);
    world_.At(healed_us_ + kServesAgainUs, [this] {
      if (front_.last_token_us() < healed_us_ && !done_ &&
          front_.choices()[probe_].first_us < 0) {
        world_.Violate('G', Cat("no token within 10 s after the faults: ",
                                engine_ == nullptr
                                    ? std::string("no coordinator")
                                    : engine_->GetStatus().not_ready_reason));
      }
    });
  }
  world_.At(healed_us_ + kAllDoneUs, [this] {
    if (ending_) return;
    const std::string left = front_.Unfinished();
    world_.Violate('G', left.empty() ? std::string("a switch does not end")
                                     : Cat("unfinished requests:", left));
  });
  LookWhetherDone();
}

void Cluster::LookWhetherDone() {
  if (ending_) return;
  const EngineStatus status =
      engine_ == nullptr ? EngineStatus{} : engine_->GetStatus();
  if ((script_ == nullptr || script_->over()) &&
      world_.now_us() >= healed_us_ && front_.all_done() && serving() &&
      status.ready && status.switch_state == "steady" && orders_open_ == 0 &&
      status.running == 0 && status.waiting == 0) {
    CheckIdle();
    StopAll();
    return;
  }
  world_.After(20'000, [this] { LookWhetherDone(); });
}

// Nothing is going on: everything must be free, and in its place.
void Cluster::CheckIdle() {
  const EngineStatus status = engine_->GetStatus();
  for (const WorkerStatus& worker : status.workers) {
    if (worker.pages_free != worker.pages_total) {
      world_.Violate('H', Cat("pages of rank ", worker.rank,
                              " are lost: ", worker.pages_free, " of ",
                              worker.pages_total, " are free"));
    }
  }
  for (Rank r = 0; r < options_.num_workers; ++r) CheckSlots("at the end", r);
}

void Cluster::StopAll() {
  ending_ = true;
  front_.SetEngine(nullptr, nullptr, false);
  for (const auto& worker : workers_) {
    if (!worker->over()) worker->Stop();
  }
  world_.After(kStopUs, [this] {
    for (const auto& worker : workers_) {
      if (!worker->over()) {
        world_.Violate('H', Cat("worker ", worker->rank(), " does not stop"));
      }
    }
    done_ = true;
  });
}

void Cluster::FillDisk(int64_t duration_us) {
  world_.CountFault("disk full");
  world_.Note("disk full", -1, static_cast<uint64_t>(duration_us));
  disk_full_until_us_ =
      std::max(disk_full_until_us_, world_.now_us() + duration_us);
  disk_.FailUntil(disk_full_until_us_);
}

DeviceWhims Cluster::OnStep(SimulatedWorker& worker) {
  DeviceWhims whims;
  whims.compute_us = order_rng_.Between(options_.step_us / 2, options_.step_us);
  if (worker.unwinding()) return whims;
  if (options_.results_late_us > 0) {
    whims.late_us = order_rng_.Between(0, options_.results_late_us);
  }
  if (options_.results_together_us > 0) {
    const int64_t ends = world_.now_us() + whims.compute_us + whims.late_us;
    whims.late_us +=
        options_.results_together_us - ends % options_.results_together_us;
  }
  if (!faults_on_ || !serving()) return whims;
  if (fault_rng_.Chance(options_.completions_lost)) {
    world_.CountFault("completion lost");
    whims.tells = false;
  }
  if (fault_rng_.Chance(options_.steps_hung)) {
    world_.CountFault("step hung");
    world_.Note("hung", worker.rank());
    whims.hangs = true;
  }
  return whims;
}

// ---- fault points ----------------------------------------------------------

absl::Status Cluster::OnFaultPoint(FaultId id) {
  ++world_.tally().reached[static_cast<int>(id)];
  if (SimulatedWorker* const worker = RunningWorker(); worker != nullptr) {
    return OnFaultPoint(*worker, id);
  }
  return OnCoordinatorFaultPoint(id);
}

absl::Status Cluster::OnCoordinatorFaultPoint(FaultId id) {
  if ((id == FaultId::kJournalWrite || id == FaultId::kJournalSync) &&
      world_.now_us() < disk_full_until_us_) {
    disk_failed_ = true;
  }
  if (script_ != nullptr && script_->Strikes(kCoordinatorRank, id)) {
    throw CoordinatorKilled{};
  }
  // A group that does not serve ends with its coordinator.
  if (!faults_on_ || !serving() || !ready_once_) return absl::OkStatus();
  if (crashes_ < options_.max_crashes &&
      fault_rng_.Chance(options_.coordinator_crash)) {
    ++crashes_;
    ++world_.tally().struck[static_cast<int>(id)];
    world_.CountFault("coordinator crashed");
    world_.Note("crash", -1, static_cast<uint64_t>(id));
    throw CoordinatorKilled{};
  }
  if (id == FaultId::kCoordinatorDecided &&
      fault_rng_.Chance(options_.full_at_switch)) {
    FillDisk(DurationOf(fault_rng_));
  }
  return absl::OkStatus();
}

absl::Status Cluster::OnFaultPoint(SimulatedWorker& worker, FaultId id) {
  if (worker.unwinding()) return absl::OkStatus();
  if (mutant_ != nullptr) mutant_->OnFaultPoint(worker, id, store_);
  // Others come between.
  if (id != FaultId::kWorkerBarrier && order_rng_.Chance(0.2)) {
    worker.Sleep(order_rng_.Between(1, 100));
  }
  if (script_ != nullptr && script_->Strikes(worker.rank(), id)) worker.Crash();
  if (!faults_on_ || !serving()) return absl::OkStatus();
  const Stage stage = StageOf(id);
  const double crash = stage == Stage::kStep     ? options_.crash_in_step
                       : stage == Stage::kSwitch ? options_.crash_in_switch
                                                 : options_.crash_in_recovery;
  const int index = static_cast<int>(id);
  if (crashes_ < options_.max_crashes && fault_rng_.Chance(crash)) {
    ++crashes_;
    ++world_.tally().struck[index];
    world_.CountFault("worker crashed");
    world_.Note("crash", worker.rank(), static_cast<uint64_t>(index));
    worker.Crash();
  }
  if (fault_rng_.Chance(options_.stalls)) {
    ++world_.tally().struck[index];
    world_.CountFault("worker held up");
    worker.Sleep(fault_rng_.Between(1'000, 900'000));
    return absl::OkStatus();
  }
  // Before it serves a group cannot do without a worker.
  if (id != FaultId::kWorkerBarrier && engine_ready_ &&
      fault_rng_.Chance(options_.errors)) {
    ++world_.tally().struck[index];
    world_.CountFault("error injected");
    world_.Note("error", worker.rank(), static_cast<uint64_t>(index));
    error_injected_[worker.rank()] = true;
    return InjectedError(id, 0);
  }
  return absl::OkStatus();
}

}  // namespace moebius::simulation
