#include "tests/simulation/simulated_worker.h"

#include <algorithm>
#include <utility>

#include "absl/time/time.h"
#include "common/base/cat.h"
#include "common/base/check.h"
#include "tests/simulation/simulated_engine.h"
#include "worker/switch/weight_checksum.h"

namespace moebius::simulation {
namespace {

SimulatedWorker* running_worker = nullptr;

}  // namespace

SimulatedWorker* RunningWorker() { return running_worker; }

// ---- what a worker sees of its surroundings --------------------------------

class SimulatedWorker::VaultEnd final : public MemoryVault {
 public:
  explicit VaultEnd(SimulatedWorker* worker) : worker_(worker) {}

  absl::Status Deposit(RegionKind kind, RegionClass, int fd,
                       uint64_t size_bytes, absl::Duration) override {
    return worker_->site_->store().Deposit(kind, worker_->rank(), fd,
                                           size_bytes);
  }
  absl::StatusOr<RegionDescriptor> Withdraw(RegionKind kind,
                                            absl::Duration) override {
    return worker_->site_->Withdraw(*worker_, kind);
  }
  absl::StatusOr<RegionDescriptor> Borrow(RegionKind kind, Rank rank,
                                          absl::Duration) override {
    while (!worker_->site_->store().Has(kind, rank)) worker_->Sleep(500);
    return worker_->site_->store().Borrow(kind, rank);
  }

 private:
  SimulatedWorker* const worker_;
};

class SimulatedWorker::LinkEnd final : public Link {
 public:
  explicit LinkEnd(SimulatedWorker* worker) : worker_(worker) {
    worker_->site_->network().Connect(worker_->rank(), worker_->incarnation());
  }

  absl::Status Send(std::string_view bytes) override {
    std::string copy(bytes);
    if (!worker_->site_->OnSend(*worker_, copy)) return absl::OkStatus();
    return worker_->site_->network().SendToHub(
        worker_->rank(), worker_->incarnation(), std::move(copy));
  }

  absl::StatusOr<std::optional<std::string>> Receive(int timeout_ms,
                                                     int) override {
    const int64_t deadline_us =
        worker_->site_->world().now_us() + int64_t{timeout_ms} * 1000;
    for (;;) {
      while (!worker_->inbox_.empty()) {
        std::string bytes = std::move(worker_->inbox_.front());
        worker_->inbox_.pop_front();
        worker_->site_->network().Taken(worker_->rank());
        if (worker_->site_->OnTake(*worker_, bytes)) return bytes;
      }
      if (timeout_ms >= 0 && worker_->site_->world().now_us() >= deadline_us) {
        return std::nullopt;
      }
      if (worker_->stop_ != 0) return std::nullopt;
      const std::optional<int64_t> tells_us = worker_->engine_->TellsAt();
      if (tells_us.has_value()) {
        if (*tells_us <= worker_->site_->world().now_us()) return std::nullopt;
        worker_->WakeAt(kLoop, *tells_us);
      }
      worker_->wants_message_ = true;
      if (timeout_ms >= 0) worker_->WakeAt(kLoop, deadline_us);
      worker_->Park();
      worker_->wants_message_ = false;
    }
  }

 private:
  SimulatedWorker* const worker_;
};

// The production barrier, asked again and again instead of waiting by itself.
class SimulatedWorker::FenceEnd final : public CpuFence {
 public:
  FenceEnd(SimulatedWorker* worker, absl::Span<std::byte* const> signals,
           int64_t timeout_us)
      : worker_(worker),
        inner_(worker->rank(), signals, BarrierOptions{}, absl::ZeroDuration()),
        timeout_us_(timeout_us),
        next_(inner_.abandoned() + 1) {}

  absl::Status Wait() override {
    const uint64_t number = next_++;
    World& world = worker_->site_->world();
    const int64_t deadline_us = world.now_us() + timeout_us_;
    for (;;) {
      if (abandoned_) {  // as SignalsFence, which is told to go on all the time
        inner_.GoOn(number);
        inner_.Abandon();
      } else {
        inner_.GoOn(number);
      }
      const absl::Status status = inner_.Wait();
      if (!absl::IsDeadlineExceeded(status)) return status;
      if (world.now_us() >= deadline_us) return status;
      if (worker_->site_->PassesEarly(*worker_)) return absl::OkStatus();
      Strand& strand = *worker_->running_;
      strand.at_barrier = number;
      strand.barrier_woken = false;
      worker_->WakeAt(worker_->Running(), deadline_us);
      worker_->Park();
      strand.at_barrier = 0;
    }
  }
  void Abandon() override {
    abandoned_ = true;
    inner_.Abandon();
  }
  void AbandonForPeers() override { inner_.AbandonForPeers(); }
  uint64_t abandoned() const override { return inner_.abandoned(); }
  void GoOn(uint64_t next) override {
    abandoned_ = false;
    next_ = next;
  }

 private:
  SimulatedWorker* const worker_;
  SignalsFence inner_;
  const int64_t timeout_us_;
  bool abandoned_ = false;
  uint64_t next_;
};

// Done some time after the switch, and then reads what is in the slots.
class SimulatedWorker::LateCheck final : public WeightCheck {
 public:
  LateCheck(SimulatedWorker* worker, const ExpertShape& shape,
            const std::byte* experts)
      : worker_(worker), shape_(shape), experts_(experts) {}

  void Begin(Epoch epoch, const ExpertsState& state) override {
    const bool kept = kept_.has_value();
    task_ = Task{epoch, kept ? std::exchange(kept_, {})->state : state,
                 worker_->site_->world().now_us() +
                     worker_->site_->Jitter(0, kLatestCheckUs)};
  }
  void GiveUp() override {
    if (worker_->site_->KeepsCheck()) kept_ = task_;
    task_.reset();
  }
  std::optional<Sum> Take() override {
    if (!task_.has_value() ||
        worker_->site_->world().now_us() < task_->done_us) {
      return std::nullopt;
    }
    const Sum sum{task_->epoch,
                  WeightChecksum(shape_, task_->state, worker_->rank(),
                                 experts_, nullptr)};
    task_.reset();
    return sum;
  }

 private:
  static constexpr int64_t kLatestCheckUs = 300'000;
  struct Task {
    Epoch epoch;
    ExpertsState state;
    int64_t done_us = 0;
  };
  SimulatedWorker* const worker_;
  const ExpertShape shape_;
  const std::byte* const experts_;
  std::optional<Task> task_;
  std::optional<Task> kept_;  // by a planted bug
};

// ---- its process -----------------------------------------------------------

SimulatedWorker::SimulatedWorker(WorkerSite* site, const WorkerOptions& options)
    : site_(site),
      options_(options),
      born_us_(site->world().now_us()),
      vault_(std::make_unique<VaultEnd>(this)) {
  strands_[kLoop] = std::make_unique<Strand>([this] { Main(); });
}

SimulatedWorker::~SimulatedWorker() { CHECK(over_); }

void SimulatedWorker::Main() {
  try {
    returned_ = RunWorker(options_, *this, &stop_);
  } catch (const Killed&) {
    returned_.reset();
  }
  // It ends before its messages do.
  unwinding_ = true;
}

void SimulatedWorker::Start() {
  WakeAt(kLoop, site_->world().now_us() + site_->Jitter(1, 2000));
}

void SimulatedWorker::Run(Which which, uint64_t ticket) {
  Strand* const strand = strands_[which].get();
  if (over_ || strand == nullptr || ticket != strand->ticket) return;
  if (!doomed_ && frozen()) {
    site_->world().At(frozen_until_us_,
                      [this, which, ticket] { Run(which, ticket); });
    return;
  }
  Slice(*strand);
}

void SimulatedWorker::Slice(Strand& strand) {
  CHECK(running_worker == nullptr);
  site_->BeforeSlice(*this);
  running_worker = this;
  Resume(strand);
  // It has died by what its device did: the rest goes too.
  Strand& loop = *strands_[kLoop];
  if (unwinding_ && !loop.fiber.done()) Resume(loop);
  running_worker = nullptr;
  if (loop.fiber.done()) {
    over_ = true;
    signals_.clear();
    site_->network().Disconnect(rank(), incarnation());
  }
  site_->AfterSlice(*this);
  if (over_) {
    site_->OnEnded(*this, returned_.has_value() ? &*returned_ : nullptr);
  }
}

void SimulatedWorker::Resume(Strand& strand) {
  strand.ticket = next_ticket_++;
  Strand* const outside = std::exchange(running_, &strand);
  strand.fiber.Resume();
  running_ = outside;
}

void SimulatedWorker::Park() {
  if (unwinding_) return;
  Fiber::Yield();
  if (doomed_) {
    unwinding_ = true;
    throw Killed{};
  }
}

void SimulatedWorker::Crash() {
  CHECK(running_worker == this && !unwinding_);
  doomed_ = unwinding_ = true;
  throw Killed{};
}

void SimulatedWorker::Kill() {
  CHECK(running_worker == nullptr);
  if (over_) return;
  doomed_ = true;
  if (strands_[kLoop]->fiber.started()) {
    Slice(*strands_[kLoop]);
    CHECK(over_);
    return;
  }
  over_ = true;
  site_->OnEnded(*this, nullptr);
}

void SimulatedWorker::BeginEngine(SimulatedEngine* engine,
                                  std::function<void()> body) {
  engine_ = engine;
  strands_[kEngine] = std::make_unique<Strand>([body = std::move(body)] {
    try {
      body();
    } catch (const Killed&) {
    }
  });
}

void SimulatedWorker::EndEngine() {
  Strand& strand = *strands_[kEngine];
  if (strand.fiber.started() && !strand.fiber.done()) Resume(strand);
  strands_[kEngine].reset();
  engine_ = nullptr;
}

void SimulatedWorker::WakeEngine() {
  WakeAt(kEngine, site_->world().now_us() + site_->Jitter(0, 20));
}

void SimulatedWorker::OnCompletion() {
  const std::optional<int64_t> tells_us = engine_->TellsAt();
  if (wants_message_ && tells_us.has_value()) WakeAt(kLoop, *tells_us);
}

void SimulatedWorker::OnStepEnded() {
  if (wants_step_end_) WakeAt(kLoop, site_->world().now_us());
}

void SimulatedWorker::ParkUntilStepEnded() {
  wants_step_end_ = true;
  Park();
  wants_step_end_ = false;
}

void SimulatedWorker::Freeze(int64_t until_us) {
  frozen_until_us_ = std::max(frozen_until_us_, until_us);
}

bool SimulatedWorker::frozen() const {
  return site_->world().now_us() < frozen_until_us_;
}

void SimulatedWorker::Stop() {
  stop_ = 1;
  if (wants_message_) WakeAt(kLoop, site_->world().now_us());
}

void SimulatedWorker::WakeAt(Which which, int64_t time_us) {
  Strand* const strand = strands_[which].get();
  if (strand == nullptr) return;
  const uint64_t ticket = strand->ticket;
  site_->world().At(time_us, [this, which, ticket] { Run(which, ticket); });
}

SimulatedWorker::Which SimulatedWorker::Running() const {
  return running_ == strands_[kLoop].get() ? kLoop : kEngine;
}

void SimulatedWorker::Deliver(std::string bytes) {
  inbox_.push_back(std::move(bytes));
  if (wants_message_) WakeAt(kLoop, site_->world().now_us());
}

const SimulatedWorker::Strand* SimulatedWorker::StrandAtBarrier() const {
  for (const auto& strand : strands_) {
    if (strand != nullptr && strand->at_barrier != 0) return strand.get();
  }
  return nullptr;
}

bool SimulatedWorker::BarrierEnds() const {
  const Strand* const strand = over_ ? nullptr : StrandAtBarrier();
  if (strand == nullptr || strand->barrier_woken) return false;
  bool complete = true;
  for (const SignalsBlock* block : signals_) {
    const SignalsArrival& arrival = block->arrival;
    if (arrival.aborted_through.load() >= strand->at_barrier) return true;
    if (arrival.sequence.load() < strand->at_barrier) complete = false;
  }
  return complete;
}

void SimulatedWorker::WakeFromBarrier() {
  for (const Which which : {kLoop, kEngine}) {
    Strand* const strand = strands_[which].get();
    if (strand == nullptr || strand->at_barrier == 0) continue;
    strand->barrier_woken = true;
    WakeAt(which, site_->world().now_us() + site_->Jitter(0, 30));
  }
}

void SimulatedWorker::Sleep(int64_t delay_us) {
  WakeAt(Running(), site_->world().now_us() + delay_us);
  Park();
}

MemoryVault& SimulatedWorker::vault() { return *vault_; }

absl::StatusOr<std::unique_ptr<Link>> SimulatedWorker::Connect() {
  return std::make_unique<LinkEnd>(this);
}

std::unique_ptr<CpuFence> SimulatedWorker::MakeFence(
    absl::Span<std::byte* const> signals) {
  signals_.clear();
  for (std::byte* base : signals) signals_.push_back(SignalsAt(base));
  return std::make_unique<FenceEnd>(
      this, signals, int64_t{options_.config.workers.step_timeout_ms} * 1000);
}

absl::StatusOr<std::unique_ptr<StepEngine>> SimulatedWorker::MakeStepEngine(
    StepRunner* runner) {
  return std::make_unique<SimulatedEngine>(this, site_, runner);
}

std::unique_ptr<WeightCheck> SimulatedWorker::MakeWeightCheck(
    const ExpertShape& shape, Rank, const std::byte* experts) {
  return std::make_unique<LateCheck>(this, shape, experts);
}

absl::Status SimulatedWorker::OnReady() {
  site_->OnReady(*this);
  return absl::OkStatus();
}

}  // namespace moebius::simulation
