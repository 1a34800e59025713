#include <dirent.h>

#include <algorithm>
#include <csignal>
#include <cstring>
#include <utility>

#include "common/base/cat.h"
#include "common/base/check.h"
#include "common/base/fnv.h"
#include "common/base/logging.h"
#include "common/base/status_macros.h"
#include "common/config/layout_config.h"
#include "tests/simulation/cluster_internal.h"

namespace moebius::simulation {
namespace {

constexpr uint64_t kMaxEvents = 2'000'000;

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

// What is measured with the real clock, and the process's number: they mean
// nothing to the protocol, and no two runs agree on them.
void DropMeasurements(wire::ReportMessage& message) {
  if (auto* hello = std::get_if<wire::Hello>(&message.report)) {
    hello->pid = 1;
  } else if (auto* result = std::get_if<StepResult>(&message.report)) {
    result->duration_us = 100;
  } else if (auto* switched = std::get_if<wire::Switched>(&message.report)) {
    switched->weight_us = switched->kv_us = switched->total_us = 100;
  }
}

}  // namespace

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
      script_(run.script),
      model_(ModelOf(options.model)),
      config_(ConfigOf(options, model_.path(), model_.sequence_bytes())),
      num_descriptors_(CountDescriptors()),
      world_(run.trace, run.keep_notes),
      fault_rng_(options.seed * 4 + 1, options.steady),
      order_rng_(options.seed * 4 + 2, options.steady),
      work_rng_(options.seed * 4 + 3, options.steady),
      network_(
          &world_, options_, fault_rng_.Fork(),
          {[this](Rank rank, Incarnation incarnation, std::string bytes) {
             SimulatedWorker* const worker = current_[rank];
             if (worker == nullptr || worker->incarnation() != incarnation) {
               return;
             }
             worker->Deliver(std::move(bytes));
           },
           [this] { WakeCoordinator(order_rng_.Between(1, 30)); }}),
      observer_(&world_, options.num_workers, InitialLayout(config_)),
      front_(&world_, options.model, answers),
      mutant_(run.mutant == nullptr ? nullptr : run.mutant->make(options.seed)),
      disk_(&world_, fault_rng_.Fork()) {
  if (options_.full_disks > 0 || options_.full_at_switch > 0) {
    front_.AllowRepetition();
  }
  if (script_ != nullptr) TellScript();
  SetFaultHandler(this);
  SetLogLevel(run.trace ? LogLevel::kInfo : LogLevel::kOff);
}

Cluster::~Cluster() {
  for (const auto& worker : workers_) worker->Kill();
  SetFaultHandler(nullptr);
}

void Cluster::TellScript() {
  script_->Bind(&world_, &store_);
  world_.SetNoteListener([this](auto kind, int rank, uint64_t a, uint64_t b) {
    script_->OnNote(kind, rank, a, b);
  });
  disk_.SetSyncListener([this](auto bytes) { script_->OnJournal(bytes); });
}

// ---- the machine -----------------------------------------------------------

void Cluster::Later(int64_t delay_us, std::function<void()> action) {
  world_.After(delay_us, [this, boot = boot_, action = std::move(action)] {
    if (!ending_ && boot == boot_) action();
  });
}

void Cluster::PowerUp() {
  launcher_ = GroupStarting{ChildSet::Group(options_.num_workers),
                            ChildSet::Group(options_.num_workers)};
  num_incarnations_ = {};
  StartCoordinator();
  for (Rank r = 0; r < options_.num_workers; ++r) StartWorker(r, false);
}

void Cluster::LosePower() {
  world_.CountFault("power lost");
  world_.Note("power lost", -1);
  DropCoordinator(true);
  for (Rank r = 0; r < options_.num_workers; ++r) {
    current_[r]->Kill();
    store_.Lose(r);
  }
  ++boot_;  // nobody hears of these ends
  network_.LosePower();
  observer_.OnPowerLost();
  ready_once_ = false;
  coordinator_frozen_until_us_ = 0;
  Later(order_rng_.Between(100'000, 1'000'000), [this] { PowerUp(); });
}

// ---- the launcher ----------------------------------------------------------

absl::Status Cluster::OpenJournal() {
  JournalOptions options;
  options.checkpoint = 1;
  options.salt = fault_rng_.Next();
  options.rotate_bytes = options_.rotate_bytes;
  if (mutant_ != nullptr && mutant_->NeverSyncs()) {
    options.fsync = FsyncPolicy::kNone;
  }
  ASSIGN_OR_RETURN(Journal::Opened opened, Journal::Open(options, disk_));
  if (opened.cut_off.has_value()) world_.CountFault("journal torn");
  journal_ = std::move(opened.journal);
  RETURN_IF_ERROR(journal_->Append(
      journal::TermBegun{Term{journal_->state().term().value + 1}}));
  journal_->Commit().IgnoreError();
  return absl::OkStatus();
}

void Cluster::StartCoordinator() {
  ++num_coordinators_;
  coordinator_born_us_ = world_.now_us();
  disk_failed_ = engine_ready_ = false;
  world_.Note("coordinator", -1, num_coordinators_);
  try {
    if (absl::Status opened = OpenJournal(); !opened.ok()) {
      if (!disk_failed_) {
        world_.Violate('J', Cat("journal: ", opened.ToString()));
      }
      return LoseCoordinator("journal does not open");
    }
  } catch (const CoordinatorKilled&) {
    return LoseCoordinator("killed");
  }
  EngineOptions options;
  options.config = config_;
  options.model = model_.config();
  if (options_.refused > 0) options.model.vocab_size = 0;  // it does not ask
  options.max_model_len = kMaxModelLen;
  options.term = journal_->state().term();
  options.served_before = ready_once_;
  options.tokenizer = &ByteTokenizer();
  options.journal = journal_.get();
  options.unix_ms = [this] { return world_.now_us() / 1000; };
  options.on_ready = [this] { ready_once_ = engine_ready_ = true; };
  options.now = [this] { return world_.Now(); };
  options.replace_worker = [this](Rank rank, Incarnation incarnation) {
    world_.Note("replace", rank, incarnation.value);
    Later(order_rng_.Between(20, 500),
          [this, rank, incarnation] { ReplaceWorker(rank, incarnation); });
  };
  options.on_failed = [this](absl::Status status) {
    if (disk_failed_) return;  // what it could not write it may not do
    world_.Violate('J', Cat("the group cannot go on: ", status.ToString()));
  };
  auto text = std::make_unique<SimTextStage>(
      [this](std::vector<Output> outputs) { Hear(std::move(outputs)); },
      [this] { PlanText(); }, mutant_.get());
  text_ = text.get();
  engine_ = std::make_unique<EngineHost>(
      std::move(options), std::make_unique<SimHub>(this), std::move(text));
  switches_seen_ = 0;
  orders_open_ = 0;
  network_.BindHub();
  if (num_coordinators_ > 1) observer_.OnNewCoordinator();
  front_.SetEngine(engine_.get(), &journal_->state(), num_coordinators_ > 1);
  WakeCoordinator(1);
  Later(1, [this] { Handle(ChildReady{kCoordinatorChild}); });
}

void Cluster::Hear(std::vector<Output> outputs) {
  if (mutant_ != nullptr) mutant_->OnOutputs(outputs);
  front_.Hear(std::move(outputs));
  if (script_ == nullptr) return;
  script_->OnOutputs(front_.choices());
  if (script_->OrdersSwitch(front_.choices())) {
    Later(0, [this] { Order(LayoutChoice::kTp); });
  }
}

// Now and then some steps late: stop strings are then noticed in the midst of
// what was drawn behind them.
void Cluster::PlanText() {
  const int64_t delay_us = order_rng_.Chance(0.2)
                               ? order_rng_.Between(1'000, 20'000)
                               : order_rng_.Between(0, 100);
  world_.After(delay_us, [this, coordinator = num_coordinators_] {
    if (engine_ == nullptr || coordinator != num_coordinators_) return;
    if (world_.now_us() < coordinator_frozen_until_us_) return PlanText();
    text_->Work();
  });
}

void Cluster::LoseCoordinator(const char* why) {
  world_.Note(Cat("coordinator lost: ", why), -1);
  DropCoordinator(false);
  const int64_t lived_ms = (world_.now_us() - coordinator_born_us_) / 1000;
  Later(order_rng_.Between(100, 3000), [this, lived_ms] {
    Handle(ChildExited{kCoordinatorChild, 0, SIGKILL, "", lived_ms});
  });
}

void Cluster::DropCoordinator(bool power_lost) {
  front_.SetEngine(nullptr, nullptr, false);
  engine_.reset();
  journal_.reset();
  disk_.Restart(power_lost);
  if (mutant_ != nullptr) mutant_->OnCoordinatorLost(disk_);
  network_.LoseHub();
}

void Cluster::StartWorker(Rank rank, bool adopt) {
  WorkerOptions options;
  options.config = config_;
  options.rank = rank;
  options.incarnation = Incarnation{++num_incarnations_[rank]};
  options.adopt = adopt;
  world_.Note("begun", rank, options.incarnation.value);
  if (!adopt) empty_[rank] = true;
  workers_.push_back(std::make_unique<SimulatedWorker>(this, options));
  current_[rank] = workers_.back().get();
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
    Later(int64_t{start->after_ms} * 1000 + order_rng_.Between(1, 200),
          [this, child] { Handle(StartDue{child}); });
  } else if (const auto* process = std::get_if<StartProcess>(&effect)) {
    if (process->child == kCoordinatorChild) {
      StartCoordinator();
    } else {
      StartSuccessor(process->child);
    }
  } else if (std::holds_alternative<AnnounceReady>(effect)) {
    if (!std::exchange(begun_, true)) Begin();
  }
}

void Cluster::ReplaceWorker(Rank rank, Incarnation incarnation) {
  SimulatedWorker* const worker = current_[rank];
  if (worker == nullptr || worker->over() ||
      worker->incarnation() != incarnation) {
    return;
  }
  world_.CountFault("worker replaced");
  if (mutant_ != nullptr && mutant_->SparesTheDead()) {
    worker->Freeze(world_.now_us() + fault_rng_.Between(1'000, 400'000));
    Handle(ChildExited{rank, 0, SIGKILL, "",
                       (world_.now_us() - worker->born_us()) / 1000});
    return;
  }
  worker->Kill();
}

void Cluster::OnReady(SimulatedWorker& worker) {
  const Rank rank = worker.rank();
  Later(order_rng_.Between(1, 50), [this, rank] { Handle(ChildReady{rank}); });
}

void Cluster::OnEnded(SimulatedWorker& worker, const absl::Status* returned) {
  const Rank rank = worker.rank();
  if (current_[rank] != &worker) return;  // of a planted bug
  world_.Note("ended", rank, worker.incarnation().value, returned != nullptr);
  if (ending_) return;
  if (returned != nullptr && !error_injected_[rank]) {
    world_.Violate(
        'J', Cat("worker ", rank, " ended by itself: ", returned->ToString()));
    return;
  }
  ChildExited exit{rank, returned != nullptr ? 1 : 0,
                   returned != nullptr ? 0 : SIGKILL,
                   returned != nullptr ? returned->ToString() : "",
                   (world_.now_us() - worker.born_us()) / 1000};
  Later(order_rng_.Between(100, 3000), [this, exit] {
    constexpr int kKept = static_cast<int>(FaultId::kVaultKept);
    ++world_.tally().reached[kKept];
    if (faults_on_ && fault_rng_.Chance(options_.memory_loss)) {
      ++world_.tally().struck[kKept];
      world_.CountFault("memory lost");
      world_.Note("memory lost", exit.child);
      store_.Lose(exit.child);
      observer_.Look(store_);
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
  try {
    if (!engine_->Turn(0)) {
      if (!disk_failed_) world_.Violate('J', "the coordinator has ended");
      return LoseCoordinator("it ended");
    }
  } catch (const CoordinatorKilled&) {
    return LoseCoordinator("killed");
  }
  const EngineStatus status = engine_->GetStatus();
  if (script_ != nullptr) script_->OnChecked(status.switches_checked_total);
  if (status.switches_total != switches_seen_) {
    switches_seen_ = status.switches_total;
    world_.Note("switched", -1, switches_seen_);
    for (Rank r = 0; r < options_.num_workers; ++r) {
      // Its process may have ended since it said that it had switched, with all
      // of its memory, and its successor still be on the way.
      if (!empty_[r]) CheckSlots("after a switch", r);
    }
  }
  const int timeout_ms = engine_->TimeoutMs();
  if (timeout_ms >= 0) {
    WakeCoordinator(std::max<int64_t>(int64_t{timeout_ms} * 1000, 20));
  }
}

absl::Status Cluster::SendCommand(Rank rank, Incarnation incarnation,
                                  std::string_view bytes) {
  auto message = wire::DecodeCommand({bytes.data(), bytes.size()});
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
  const absl::Status sent =
      network_.SendToWorker(rank, incarnation, std::move(out));
  if (script_ != nullptr && sent.ok()) script_->OnCommand(rank, *message);
  return sent;
}

std::vector<Hub::Message> Cluster::TakeReports() {
  std::vector<Hub::Message> messages = network_.TakeAll();
  if (mutant_ == nullptr) return messages;
  for (Hub::Message& message : messages) {
    auto report =
        wire::DecodeReport({message.bytes.data(), message.bytes.size()});
    if (!report.ok()) continue;
    if (mutant_->OnHubReport(message.rank, message.incarnation, *report)) {
      message.bytes = Encode(*report);
    }
  }
  return messages;
}

void Cluster::Order(LayoutChoice choice) {
  if (engine_ == nullptr) return;
  world_.Note(
      "order", -1,
      choice.is_auto() ? 0 : choice.LayoutIn(options_.num_workers).tp_size);
  ++orders_open_;
  engine_->SetLayout(choice, [this](absl::StatusOr<SwitchReport> report) {
    --orders_open_;
    if (disk_failed_) return;  // it may be giving up
    if (!report.ok()) return;
    world_.Note("order answered", -1, report->epoch.value, report->done);
    observer_.OnSwitchReport(report->epoch, report->done);
    if (!report->done && report->epoch.value != 0) {
      world_.CountFault("switch refused");
    }
  });
}

void Cluster::CheckSlots(const char* when, Rank rank) {
  const ExpertsState& state = observer_.experts();
  const TinyModel::Slots& expected =
      model_.SlotsOf(options_.num_workers, state.to, rank);
  const std::byte* const actual = store_.View(RegionKind::kExperts, rank);
  if (actual == nullptr) return;
  ExpertShape shape = expected.shape;
  shape.spare_slots = options_.spare_slots;
  const int64_t slot_bytes = shape.slot_bytes();
  for (int layer = 0; layer < shape.num_moe_layers; ++layer) {
    if (std::memcmp(actual + state.SlotOf(shape, layer) * slot_bytes,
                    expected.bytes.data() + layer * slot_bytes,
                    static_cast<size_t>(slot_bytes)) != 0) {
      world_.Violate('D', Cat(when, " layer ", layer, " of rank ", rank,
                              " is not that of layout ",
                              LayoutName(state.to, options_.num_workers)));
    }
  }
}

// ---- around the slices of workers ------------------------------------------

void Cluster::BeforeSlice(SimulatedWorker&) { observer_.Look(store_); }

void Cluster::AfterSlice(SimulatedWorker& worker) {
  observer_.AfterSlice(store_, worker.rank(), worker.incarnation());
  if (script_ != nullptr) script_->Look();
  for (const auto& other : current_) {
    if (other != nullptr && other->BarrierEnds()) other->WakeFromBarrier();
  }
}

bool Cluster::OnTake(SimulatedWorker& worker, std::string& bytes) {
  auto message = wire::DecodeCommand({bytes.data(), bytes.size()});
  if (!message.ok()) return true;
  bool drop = false;
  if (mutant_ != nullptr &&
      mutant_->OnTaken(worker.rank(), worker.incarnation(), *message, drop)) {
    bytes = Encode(*message);
  }
  if (drop) return false;
  observer_.OnTaken(worker.rank(), worker.incarnation(), message->command);
  return true;
}

bool Cluster::OnSend(SimulatedWorker& worker, std::string& bytes) {
  auto message = wire::DecodeReport({bytes.data(), bytes.size()});
  if (!message.ok()) {
    world_.Violate('J', Cat("a report that cannot be read: ",
                            message.status().ToString()));
    return true;
  }
  DropMeasurements(*message);
  if (std::holds_alternative<wire::Loaded>(message->report)) {
    empty_[worker.rank()] = false;
  }
  bool drop = false;
  if (mutant_ != nullptr) mutant_->OnReport(worker.rank(), *message, drop);
  bytes = Encode(*message);
  world_.Note("report", worker.rank(), message->report.index(), HashOf(bytes));
  if (script_ != nullptr) script_->OnReport(worker.rank(), message->report);
  return !drop;
}

absl::StatusOr<RegionDescriptor> Cluster::Withdraw(SimulatedWorker& worker,
                                                   RegionKind kind) {
  auto kept = store_.Withdraw(kind, worker.rank());
  if (mutant_ != nullptr)
    mutant_->OnWithdraw(worker.rank(), kind, store_, kept);
  return kept;
}

// ---- a run -----------------------------------------------------------------

Outcome Cluster::Run() {
  const int num_fibers = Fiber::num_alive();
  PowerUp();
  while (!done_ && !world_.violation().has_value()) {
    if (!world_.RunOne()) {
      world_.Violate('G', "nothing is left that could happen");
    }
    if (world_.tally().events > kMaxEvents) {
      world_.Violate('G', "the run does not end");
    }
  }
  Outcome outcome;
  outcome.choices = front_.choices();
  outcome.switches = static_cast<int>(switches_seen_);
  if (engine_ != nullptr) {
    outcome.recoveries = engine_->GetStatus().recoveries_total;
  }
  outcome.end_us = world_.now_us();
  for (const auto& worker : workers_) worker->Kill();
  workers_.clear();
  engine_.reset();
  journal_.reset();
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

Outcome Play(const Options& options, const RunOptions& run) {
  const std::vector<Answer>& answers = AnswersOf(options.model);
  Cluster cluster(options, run, &answers);
  return cluster.Run();
}

std::vector<Front::Choice> PlayQuietly(int model) {
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
  return std::move(outcome.choices);
}

}  // namespace moebius::simulation
