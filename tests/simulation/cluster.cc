#include "tests/simulation/cluster.h"

#include <dirent.h>
#include <spdlog/spdlog.h>

#include <algorithm>
#include <csignal>
#include <cstring>
#include <utility>

#include "common/cat.h"
#include "common/check.h"
#include "common/fnv.h"
#include "tests/simulation/tiny_model.h"

namespace moebius::simulation {
namespace {

// After the faults have ended.
constexpr int64_t kServesAgainUs = 10'000'000;
constexpr int64_t kAllDoneUs = 60'000'000;
constexpr uint64_t kMaxEvents = 2'000'000;
constexpr int64_t kStopUs = 5'000'000;

uint64_t HashOf(std::string_view bytes) {
  Fnv1a hash;
  for (unsigned char c : bytes) hash.Add(c);
  return hash.hash();
}

int CountDescriptors() {
  DIR* const dir = ::opendir("/proc/self/fd");
  CHECK(dir != nullptr);
  int count = 0;
  while (::readdir(dir) != nullptr) ++count;
  ::closedir(dir);
  return count;
}

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

// What is measured with the real clock, and the process's number: they mean
// nothing to the protocol, and no two runs agree on them.
void DropMeasurements(ReportMessage& message) {
  if (auto* hello = std::get_if<Hello>(&message.report)) {
    hello->pid = 1;
  } else if (auto* result = std::get_if<StepResult>(&message.report)) {
    result->duration_us = 100;
  } else if (auto* switched = std::get_if<Switched>(&message.report)) {
    switched->weight_us = switched->kv_us = switched->total_us = 100;
  }
}

class Cluster final : public LifeSite, public FaultHandler {
 public:
  Cluster(const Options& options, const RunOptions& run,
          const std::vector<Answer>* answers);
  ~Cluster() override;

  // All requests come at once, and nothing else happens.
  void AskEverything() { ask_everything_ = true; }
  Outcome Run();

 private:
  class SimHub;

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
  void WakeCoordinator(int64_t delay_us);
  void Turn();
  absl::Status SendCommand(Rank rank, Incarnation incarnation,
                           std::string_view bytes);
  std::vector<Hub::Message> TakeReports();
  void Order(LayoutChoice choice);
  void CheckSlots(const char* when);

  // ---- what happens to them
  void Begin();
  void PlanWork();
  void PlanFaults();
  void Heal();
  void LookWhetherDone();
  void CheckIdle();
  void StopAll();

  // ---- LifeSite
  World& world() override { return world_; }
  Network& network() override { return network_; }
  VaultStore& store() override { return store_; }
  int64_t Jitter(int64_t low_us, int64_t high_us) override {
    return order_rng_.Between(low_us, high_us);
  }
  void BeforeSlice(Life& life) override;
  void AfterSlice(Life& life) override;
  void OnReady(Life& life) override;
  void OnEnded(Life& life, const absl::Status* returned) override;
  absl::Status OnFaultPoint(Life& life, FaultId id) override;
  bool OnTake(Life& life, std::string& bytes) override;
  bool OnSend(Life& life, std::string& bytes) override;
  bool PassesEarly(Life& life) override {
    return mutant_ != nullptr && mutant_->PassesEarly(life);
  }
  absl::StatusOr<RegionDescriptor> Withdraw(Life& life,
                                            RegionKind kind) override;

  // ---- FaultHandler
  absl::Status OnFaultPoint(FaultId id) override;

  const Options options_;
  const RunOptions run_;
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
  std::array<uint64_t, kMaxRanks> num_lives_{};
  std::vector<std::unique_ptr<Life>> lives_;  // all there ever were
  std::array<Life*, kMaxRanks> current_{};
  std::array<bool, kMaxRanks> error_injected_{};

  std::unique_ptr<EngineHost> engine_;
  int64_t turn_at_us_ = -1;
  uint64_t turn_ticket_ = 0;
  int64_t coordinator_frozen_until_us_ = 0;
  uint64_t switches_seen_ = 0;
  int orders_open_ = 0;

  bool ready_once_ = false;
  bool ask_everything_ = false;
  bool faults_on_ = false;
  bool healed_ = false;
  bool ending_ = false;
  bool done_ = false;
  int crashes_ = 0;
  size_t probe_ = 0;
  int64_t healed_us_ = 0;
};

class Cluster::SimHub final : public Hub {
 public:
  explicit SimHub(Cluster* cluster) : cluster_(cluster) {}
  absl::Status Send(Rank rank, Incarnation incarnation,
                    std::string_view bytes) override {
    return cluster_->SendCommand(rank, incarnation, bytes);
  }
  absl::StatusOr<std::vector<Message>> Receive(int) override {
    return cluster_->TakeReports();
  }
  void Wake() override { cluster_->WakeCoordinator(1); }

 private:
  Cluster* const cluster_;
};

Cluster::Cluster(const Options& options, const RunOptions& run,
                 const std::vector<Answer>* answers)
    : options_(options),
      run_(run),
      model_(ModelOf(options.model)),
      config_(ConfigOf(options, model_.path(), model_.sequence_bytes())),
      num_descriptors_(CountDescriptors()),
      world_(run.trace, run.keep_notes),
      fault_rng_(options.seed * 4 + 1),
      order_rng_(options.seed * 4 + 2),
      work_rng_(options.seed * 4 + 3),
      network_(&world_, options_, fault_rng_.Fork(),
               {[this](Rank rank, Incarnation incarnation, std::string bytes) {
                  Life* const life = current_[rank];
                  if (life == nullptr || life->incarnation() != incarnation) {
                    return;
                  }
                  life->Deliver(std::move(bytes));
                },
                [this] { WakeCoordinator(order_rng_.Between(1, 30)); }}),
      observer_(&world_, options.num_workers, InitialLayout(config_)),
      front_(&world_, &AsksOf(options.model), answers),
      mutant_(run.mutant == nullptr ? nullptr : run.mutant->make(options.seed)),
      launcher_(GroupStarting{ChildSet::Group(options.num_workers),
                              ChildSet::Group(options.num_workers)}) {
  SetFaultHandler(this);
  spdlog::set_level(run.trace ? spdlog::level::info : spdlog::level::off);
}

Cluster::~Cluster() {
  for (const auto& life : lives_) life->Kill();
  SetFaultHandler(nullptr);
}

// ---- the launcher ----------------------------------------------------------

void Cluster::StartCoordinator() {
  EngineOptions options;
  options.config = config_;
  options.model = model_.config();
  options.max_model_len = kMaxModelLen;
  options.tokenizer = &ByteTokenizer();
  options.listener = [this](std::vector<Output> outputs) {
    if (mutant_ != nullptr) mutant_->OnOutputs(outputs);
    front_.Hear(std::move(outputs));
  };
  options.on_ready = [this] { ready_once_ = true; };
  options.now = [this] { return world_.Now(); };
  options.replace_worker = [this](Rank rank, Incarnation incarnation) {
    world_.Note("replace", rank, incarnation.value);
    world_.After(order_rng_.Between(20, 500), [this, rank, incarnation] {
      ReplaceWorker(rank, incarnation);
    });
  };
  options.on_failed = [this](absl::Status status) {
    world_.Violate('J', Cat("the group cannot go on: ", status.ToString()));
  };
  engine_ = std::make_unique<EngineHost>(std::move(options),
                                         std::make_unique<SimHub>(this));
  front_.SetEngine(engine_.get());
  WakeCoordinator(1);
  world_.After(1, [this] { Handle(ChildReady{kCoordinatorChild}); });
}

void Cluster::StartWorker(Rank rank, bool adopt) {
  WorkerOptions options;
  options.config = config_;
  options.rank = rank;
  options.incarnation = Incarnation{++num_lives_[rank]};
  options.adopt = adopt;
  world_.Note("life", rank, options.incarnation.value);
  lives_.push_back(std::make_unique<Life>(this, options));
  current_[rank] = lives_.back().get();
  error_injected_[rank] = false;
  current_[rank]->Start();
}

// With the memory of its predecessor, if all of it is kept.
void Cluster::StartSuccessor(Rank rank) {
  bool whole = true;
  for (int kind = 0; kind < kNumRegionKinds; ++kind) {
    whole = whole && store_.Has(static_cast<RegionKind>(kind), rank);
  }
  if (!whole) store_.Lose(rank);
  StartWorker(rank, whole);
}

void Cluster::Handle(const GroupEvent& event) {
  auto transition = Supervise(policy_, launcher_, event);
  if (!transition.ok()) {
    world_.Violate('J', Cat("launcher: ", transition.status().ToString()));
    return;
  }
  launcher_ = std::move(transition->next);
  for (const GroupEffect& effect : transition->effects) Apply(effect);
  if (std::holds_alternative<GroupEnding>(launcher_)) {
    world_.Violate('J', Cat("the launcher gave up: ",
                            std::get<GroupEnding>(launcher_).message));
  }
}

void Cluster::Apply(const GroupEffect& effect) {
  if (const auto* start = std::get_if<ScheduleStart>(&effect)) {
    const ChildId child = start->child;
    world_.After(int64_t{start->after_ms} * 1000 + order_rng_.Between(1, 200),
                 [this, child] { Handle(StartDue{child}); });
  } else if (const auto* life = std::get_if<StartLife>(&effect)) {
    StartSuccessor(life->child);
  } else if (std::holds_alternative<AnnounceReady>(effect)) {
    Begin();
  }
}

void Cluster::ReplaceWorker(Rank rank, Incarnation incarnation) {
  Life* const life = current_[rank];
  if (life == nullptr || life->over() || life->incarnation() != incarnation) {
    return;
  }
  world_.CountFault("worker replaced");
  if (mutant_ != nullptr && mutant_->SparesTheDead()) {
    life->Freeze(world_.now_us() + fault_rng_.Between(1'000, 400'000));
    Handle(ChildExited{rank, 0, SIGKILL, "",
                       (world_.now_us() - life->born_us()) / 1000});
    return;
  }
  life->Kill();
}

void Cluster::OnReady(Life& life) {
  const Rank rank = life.rank();
  world_.After(order_rng_.Between(1, 50), [this, rank] {
    if (!ending_) Handle(ChildReady{rank});
  });
}

void Cluster::OnEnded(Life& life, const absl::Status* returned) {
  const Rank rank = life.rank();
  if (current_[rank] != &life) return;  // of a planted bug
  world_.Note("ended", rank, life.incarnation().value, returned != nullptr);
  if (ending_) return;
  if (returned != nullptr && !error_injected_[rank]) {
    world_.Violate(
        'J', Cat("worker ", rank, " ended by itself: ", returned->ToString()));
    return;
  }
  ChildExited exit{rank, returned != nullptr ? 1 : 0,
                   returned != nullptr ? 0 : SIGKILL,
                   returned != nullptr ? returned->ToString() : "",
                   (world_.now_us() - life.born_us()) / 1000};
  world_.After(order_rng_.Between(100, 3000), [this, exit] {
    if (ending_) return;
    constexpr int kKept = static_cast<int>(FaultId::kVaultKept);
    ++world_.tally().reached[kKept];
    if (faults_on_ && fault_rng_.Chance(options_.memory_loss)) {
      ++world_.tally().struck[kKept];
      world_.CountFault("memory lost");
      world_.Note("memory lost", exit.child);
      store_.Lose(exit.child);
    }
    Handle(exit);
  });
}

// ---- the coordinator -------------------------------------------------------

void Cluster::WakeCoordinator(int64_t delay_us) {
  const int64_t at = world_.now_us() + delay_us;
  if (turn_at_us_ >= 0 && turn_at_us_ <= at) return;
  turn_at_us_ = at;
  const uint64_t ticket = ++turn_ticket_;
  world_.At(at, [this, ticket] {
    if (ticket == turn_ticket_) Turn();
  });
}

void Cluster::Turn() {
  turn_at_us_ = -1;
  if (engine_ == nullptr) return;
  if (world_.now_us() < coordinator_frozen_until_us_) {
    WakeCoordinator(coordinator_frozen_until_us_ - world_.now_us());
    return;
  }
  if (!engine_->Turn(0)) {
    world_.Violate('J', "the coordinator has ended");
    return;
  }
  const EngineStatus status = engine_->GetStatus();
  if (status.switches_total != switches_seen_) {
    switches_seen_ = status.switches_total;
    world_.Note("switched", -1, switches_seen_);
    CheckSlots("after a switch");
  }
  const int timeout_ms = engine_->TimeoutMs();
  if (timeout_ms >= 0) {
    WakeCoordinator(std::max<int64_t>(int64_t{timeout_ms} * 1000, 20));
  }
}

absl::Status Cluster::SendCommand(Rank rank, Incarnation incarnation,
                                  std::string_view bytes) {
  auto message = DecodeCommand({bytes.data(), bytes.size()});
  if (!message.ok()) {
    world_.Violate('J', Cat("a command that cannot be read: ",
                            message.status().ToString()));
    return absl::OkStatus();
  }
  std::string out(bytes);
  bool drop = false;
  if (mutant_ != nullptr && mutant_->OnCommand(rank, *message, drop)) {
    out = Encode(*message);
  }
  observer_.OnCommand(rank, incarnation, message->command);
  world_.Note("command", rank, message->command.index(), HashOf(out));
  if (drop) return absl::OkStatus();
  return network_.SendToWorker(rank, incarnation, std::move(out));
}

std::vector<Hub::Message> Cluster::TakeReports() {
  std::vector<Hub::Message> messages = network_.TakeAll();
  if (mutant_ == nullptr) return messages;
  for (Hub::Message& message : messages) {
    auto report = DecodeReport({message.bytes.data(), message.bytes.size()});
    if (!report.ok()) continue;
    if (mutant_->OnHubReport(message.rank, message.incarnation, *report)) {
      message.bytes = Encode(*report);
    }
  }
  return messages;
}

void Cluster::Order(LayoutChoice choice) {
  world_.Note("order", -1, static_cast<uint64_t>(choice));
  ++orders_open_;
  engine_->SetLayout(choice, [this](absl::StatusOr<SwitchReport> report) {
    --orders_open_;
    if (!report.ok()) return;
    world_.Note("order answered", -1, report->epoch.value, report->done);
    observer_.OnSwitchReport(report->epoch, report->done);
    if (!report->done && report->epoch.value != 0) {
      world_.CountFault("switch refused");
    }
  });
}

void Cluster::CheckSlots(const char* when) {
  const Layout layout = observer_.layout();
  for (Rank r = 0; r < options_.num_workers; ++r) {
    const TinyModel::Slots& expected =
        model_.SlotsOf(options_.num_workers, layout, r);
    const std::byte* const actual = store_.View(RegionKind::kExperts, r);
    if (actual == nullptr) continue;
    const int64_t slot_bytes = expected.shape.slot_bytes();
    for (int layer = 0; layer < expected.shape.num_moe_layers; ++layer) {
      const int64_t begin = SlotOf(layout, layer) * slot_bytes;
      if (std::memcmp(actual + begin, expected.bytes.data() + begin,
                      static_cast<size_t>(slot_bytes)) != 0) {
        world_.Violate('D', Cat(when, " layer ", layer, " of rank ", r,
                                " is not that of layout ", LayoutName(layout)));
      }
    }
  }
}

// ---- what happens to them --------------------------------------------------

void Cluster::Begin() {
  world_.Note("serving", -1);
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
      front_.SubmitAt(now, ask, AsksOf(options_.model)[ask].max_tokens, -1);
    }
    return;
  }
  for (int i = 0; i < options_.num_requests; ++i) {
    const int ask = work_rng_.Int(0, kNumAsks - 1);
    const int most = AsksOf(options_.model)[ask].max_tokens;
    const int64_t at =
        now + work_rng_.Between(0, int64_t{options_.arrivals_ms} * 1000);
    const int64_t abort_after_us =
        work_rng_.Chance(options_.aborts) ? work_rng_.Between(0, 100'000) : -1;
    front_.SubmitAt(at, ask, work_rng_.Int(1, most), abort_after_us);
  }
  for (int i = 0; i < options_.switches; ++i) {
    const auto choice = work_rng_.Chance(0.1)
                            ? LayoutChoice::kAuto
                            : static_cast<LayoutChoice>(work_rng_.Int(0, 1));
    // While there is something to do.
    const int until_ms =
        std::min(options_.fault_ms, options_.arrivals_ms + 300);
    world_.After(work_rng_.Between(0, int64_t{until_ms} * 1000),
                 [this, choice] {
                   if (!ending_) Order(choice);
                 });
  }
}

void Cluster::PlanFaults() {
  Rng rng = fault_rng_.Fork();
  const int64_t end = int64_t{options_.fault_ms} * 1000;
  const auto duration = [](Rng& r) {
    switch (r.Int(0, 2)) {
      case 0:
        return r.Between(1'000, 50'000);
      case 1:
        return r.Between(50'000, 700'000);
      default:
        return r.Between(700'000, 3'000'000);
    }
  };
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
    world_.After(rng.Between(0, end), [this, r = rank(), d = duration(rng)] {
      if (current_[r]->over() || !faults_on_) return;
      world_.CountFault("worker paused");
      world_.Note("paused", r, static_cast<uint64_t>(d));
      current_[r]->Freeze(world_.now_us() + d);
    });
  }
  for (int i = 0; i < options_.coordinator_pauses; ++i) {
    world_.After(rng.Between(0, end), [this, d = duration(rng)] {
      if (!faults_on_) return;
      world_.CountFault("coordinator paused");
      world_.Note("paused", -1, static_cast<uint64_t>(d));
      coordinator_frozen_until_us_ = world_.now_us() + d;
    });
  }
  for (int i = 0; i < options_.partitions; ++i) {
    world_.After(rng.Between(0, end), [this, r = rank(), d = duration(rng),
                                       to_worker = rng.Chance(0.5)] {
      if (!faults_on_) return;
      world_.CountFault("partition");
      world_.Note("partition", r, to_worker, static_cast<uint64_t>(d));
      network_.Partition(r, to_worker, world_.now_us() + d);
    });
  }
}

// Faults end. Whoever is frozen goes on when his time is over.
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
  healed_us_ = std::max(healed_us_, coordinator_frozen_until_us_);
  if (!ask_everything_) {
    probe_ = front_.requests().size();
    front_.SubmitAt(world_.now_us(), 0, 2, -1);
    world_.At(healed_us_ + kServesAgainUs, [this] {
      if (front_.last_token_us() < healed_us_ && !done_ &&
          front_.requests()[probe_].first_us < 0) {
        world_.Violate('G', Cat("no token within 10 s after the faults: ",
                                engine_->GetStatus().not_ready_reason));
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
  const EngineStatus status = engine_->GetStatus();
  if (world_.now_us() >= healed_us_ && front_.all_done() && serving() &&
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
  CheckSlots("at the end");
}

void Cluster::StopAll() {
  ending_ = true;
  front_.SetEngine(nullptr);
  for (const auto& life : lives_) {
    if (!life->over()) life->Stop();
  }
  world_.After(kStopUs, [this] {
    for (const auto& life : lives_) {
      if (!life->over()) {
        world_.Violate('H', Cat("worker ", life->rank(), " does not stop"));
      }
    }
    done_ = true;
  });
}

// ---- around the slices of workers ------------------------------------------

void Cluster::BeforeSlice(Life&) { observer_.BeforeSlice(store_); }

void Cluster::AfterSlice(Life& life) {
  observer_.AfterSlice(store_, life.rank(), life.incarnation());
  for (const auto& other : current_) {
    if (other != nullptr && other->BarrierEnds()) other->WakeFromBarrier();
  }
}

absl::Status Cluster::OnFaultPoint(FaultId id) {
  ++world_.tally().reached[static_cast<int>(id)];
  if (Life* const life = RunningLife(); life != nullptr) {
    return OnFaultPoint(*life, id);
  }
  return absl::OkStatus();
}

absl::Status Cluster::OnFaultPoint(Life& life, FaultId id) {
  if (life.unwinding()) return absl::OkStatus();
  if (mutant_ != nullptr) mutant_->OnFaultPoint(life, id, store_);
  if (id == FaultId::kWorkerStep) {
    life.Sleep(order_rng_.Between(options_.step_us / 2, options_.step_us));
  }
  // Others come between.
  if (id != FaultId::kWorkerBarrier && order_rng_.Chance(0.2)) {
    life.Sleep(order_rng_.Between(1, 100));
  }
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
    world_.Note("crash", life.rank(), static_cast<uint64_t>(index));
    life.Crash();
  }
  if (fault_rng_.Chance(options_.stalls)) {
    ++world_.tally().struck[index];
    world_.CountFault("worker held up");
    life.Sleep(fault_rng_.Between(1'000, 900'000));
    return absl::OkStatus();
  }
  // Before it serves a group cannot do without a worker.
  if (id != FaultId::kWorkerBarrier && ready_once_ &&
      fault_rng_.Chance(options_.errors)) {
    ++world_.tally().struck[index];
    world_.CountFault("error injected");
    world_.Note("error", life.rank(), static_cast<uint64_t>(index));
    error_injected_[life.rank()] = true;
    return InjectedError(id, 0);
  }
  return absl::OkStatus();
}

bool Cluster::OnTake(Life& life, std::string& bytes) {
  auto message = DecodeCommand({bytes.data(), bytes.size()});
  if (!message.ok()) return true;
  bool drop = false;
  if (mutant_ != nullptr &&
      mutant_->OnTaken(life.rank(), life.incarnation(), *message, drop)) {
    bytes = Encode(*message);
  }
  if (drop) return false;
  observer_.OnTaken(life.rank(), life.incarnation(), message->command);
  return true;
}

bool Cluster::OnSend(Life& life, std::string& bytes) {
  auto message = DecodeReport({bytes.data(), bytes.size()});
  if (!message.ok()) {
    world_.Violate('J', Cat("a report that cannot be read: ",
                            message.status().ToString()));
    return true;
  }
  DropMeasurements(*message);
  bool drop = false;
  if (mutant_ != nullptr) mutant_->OnReport(life.rank(), *message, drop);
  bytes = Encode(*message);
  world_.Note("report", life.rank(), message->report.index(), HashOf(bytes));
  return !drop;
}

absl::StatusOr<RegionDescriptor> Cluster::Withdraw(Life& life,
                                                   RegionKind kind) {
  auto kept = store_.Withdraw(kind, life.rank());
  if (mutant_ != nullptr) mutant_->OnWithdraw(life.rank(), kind, store_, kept);
  return kept;
}

// ---- a run -----------------------------------------------------------------

Outcome Cluster::Run() {
  const int num_fibers = Fiber::num_alive();
  StartCoordinator();
  for (Rank r = 0; r < options_.num_workers; ++r) StartWorker(r, false);
  while (!done_ && !world_.violation().has_value()) {
    if (!world_.RunOne()) {
      world_.Violate('G', "nothing is left that could happen");
    }
    if (world_.tally().events > kMaxEvents) {
      world_.Violate('G', "the run does not end");
    }
  }
  Outcome outcome;
  outcome.requests = front_.requests();
  outcome.switches = static_cast<int>(switches_seen_);
  outcome.recoveries = engine_->GetStatus().recoveries_total;
  outcome.end_us = world_.now_us();
  for (const auto& life : lives_) life->Kill();
  lives_.clear();
  engine_.reset();
  for (Rank r = 0; r < options_.num_workers; ++r) store_.Lose(r);
  if (Fiber::num_alive() != num_fibers) {
    world_.Violate('H', "fibers are left");
  }
  if (const int now = CountDescriptors(); now != num_descriptors_) {
    world_.Violate('H', Cat(now - num_descriptors_, " descriptors are left"));
  }
  outcome.hash = world_.hash();
  outcome.tally = world_.tally();
  outcome.violation = world_.violation();
  outcome.notes = world_.notes();
  return outcome;
}

}  // namespace

Outcome Play(const Options& options, const RunOptions& run) {
  const std::vector<Answer>& answers = AnswersOf(options.model);
  Cluster cluster(options, run, &answers);
  return cluster.Run();
}

std::vector<Front::Request> PlayQuietly(int model) {
  Options options = WithoutFaults(Options{});
  options.model = model;
  options.pool = 40;
  options.max_running = 16;
  options.token_budget = 64;
  options.step_us = 100;
  Cluster cluster(options, {}, nullptr);
  cluster.AskEverything();
  Outcome outcome = cluster.Run();
  if (outcome.violation.has_value()) {
    std::fprintf(stderr, "the quiet run: %c: %s\n",
                 outcome.violation->invariant, outcome.violation->what.c_str());
    std::abort();
  }
  return std::move(outcome.requests);
}

}  // namespace moebius::simulation
