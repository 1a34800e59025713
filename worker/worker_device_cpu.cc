#include "worker/worker_device_cpu.h"

#include <utility>
#include <vector>

#include "common/base/status_macros.h"
#include "worker/bench/probe_cpu.h"
#include "worker/model/decoder.h"
#include "worker/model/weight_sink_cpu.h"
#include "worker/peers/collectives_cpu.h"
#include "worker/peers/exchange.h"
#include "worker/peers/token_board.h"
#include "worker/steps/step_executor.h"
#include "worker/switch/thread_mover.h"
#include "worker/switch/weight_checksum.h"

namespace moebius {
namespace {

TokenBoard::Capacity BoardCapacity(const Config& config) {
  return {static_cast<uint32_t>(config.scheduler.max_running),
          static_cast<uint32_t>(config.scheduler.token_budget)};
}

// Where the token board begins.
int64_t CollectivesBytes(const Config& config, const ModelShape& shape) {
  const int64_t bytes =
      PlanExchange(shape, config.scheduler.token_budget).size_bytes;
  return (bytes + 63) / 64 * 64;
}

std::vector<const std::byte*> ExchangesAt(const WorkerMemory& memory,
                                          int64_t offset) {
  std::vector<const std::byte*> bases;
  for (const std::byte* base : memory.bases(RegionKind::kExchange)) {
    bases.push_back(base + offset);
  }
  return bases;
}

Collectives<Cpu>::Options PeersOf(const Config& config, const WorkerPlan& plan,
                                  const WorkerMemory& memory,
                                  Barrier* barrier) {
  Collectives<Cpu>::Options options;
  options.shape = plan.shape;
  options.rank = memory.rank();
  options.max_rows = config.scheduler.token_budget;
  options.exchange = memory.mutable_base(RegionKind::kExchange);
  options.peer_exchange = ExchangesAt(memory, 0);
  options.barrier = barrier;
  return options;
}

DecoderOptions<Cpu> DecoderOf(const Config& config, const WorkerPlan& plan,
                              const WorkerMemory& memory,
                              Collectives<Cpu>* peers) {
  DecoderOptions<Cpu> options;
  options.shape = plan.shape;
  options.rank = memory.rank();
  options.max_rows = config.scheduler.token_budget;
  options.max_positions = plan.context_length;
  options.dense = memory.base(RegionKind::kDense, options.rank);
  options.experts = memory.base(RegionKind::kExperts, options.rank);
  options.kv = {memory.mutable_base(RegionKind::kKv), plan.num_pages,
                PageFormatOf(plan.kv)};
  options.peers = peers;
  return options;
}

class CpuDevice final : public WorkerDevice {
 public:
  CpuDevice(const Config& config, const WorkerPlan& plan,
            const WorkerMemory& memory, std::unique_ptr<CpuFence> fence)
      : plan_(plan),
        memory_(memory),
        fence_(std::move(fence)),
        pool_(ThreadsOf(config) - 1),
        slots_(memory.rank(), config.scheduler.max_running,
               plan.shape.spec.vocab_size),
        board_(memory.mutable_base(RegionKind::kExchange) +
                   CollectivesBytes(config, plan.shape),
               ExchangesAt(memory, CollectivesBytes(config, plan.shape)),
               BoardCapacity(config)),
        steps_(StepContext{
            memory.rank(), memory.num_ranks(), &slots_,
            [this](const Pass<Cpu>& pass) { return decoder_->Run(pass); },
            &board_, fence_.get()}),
        mover_(&memory, plan.kv.page_bytes(), &pool_) {}

  absl::Status Init(const Config& config, WorkerHost& host) {
    const Cpu device{&pool_};
    ASSIGN_OR_RETURN(
        peers_, Collectives<Cpu>::Create(
                    device, PeersOf(config, plan_, memory_, fence_.get())));
    ASSIGN_OR_RETURN(
        decoder_, Decoder<Cpu>::Create(
                      device, DecoderOf(config, plan_, memory_, peers_.get())));
    check_ =
        host.MakeWeightCheck(plan_.shape.experts, memory_.rank(), experts());
    ASSIGN_OR_RETURN(engine_, host.MakeStepEngine(&steps_));
    return absl::OkStatus();
  }

  GroupFence& fence() override { return *fence_; }
  Barrier& barrier() override { return *fence_; }
  SlotTables& slots() override { return slots_; }
  StepEngine& engine() override { return *engine_; }
  Mover& mover() override { return mover_; }
  ThreadPool* copy_threads() override { return &pool_; }
  WeightCheck& check() override { return *check_; }
  absl::Status FollowPeers() override { return absl::OkStatus(); }
  std::unique_ptr<WeightSink> MakeSink() override {
    return MakeCpuWeightSink(memory_.mutable_base(RegionKind::kDense),
                             memory_.mutable_base(RegionKind::kExperts));
  }
  uint64_t Checksum(const ExpertsState& state) override {
    return WeightChecksum(plan_.shape.experts, state, memory_.rank(), experts(),
                          &pool_);
  }
  absl::StatusOr<std::unique_ptr<DeviceProbe>> MakeProbe() override {
    return MakeCpuProbe(Cpu{&pool_}, decoder_.get());
  }

 private:
  const std::byte* experts() const {
    return memory_.base(RegionKind::kExperts, memory_.rank());
  }

  const WorkerPlan& plan_;
  const WorkerMemory& memory_;
  const std::unique_ptr<CpuFence> fence_;
  ThreadPool pool_;
  std::unique_ptr<Collectives<Cpu>> peers_;
  std::unique_ptr<Decoder<Cpu>> decoder_;
  DeviceSlots slots_;
  TokenBoard board_;
  StepExecutor steps_;
  ThreadMover mover_;
  std::unique_ptr<WeightCheck> check_;
  std::unique_ptr<StepEngine> engine_;  // last: it runs what is above
};

class CpuPlatform final : public WorkerPlatform {
 public:
  const RegionMaker& maker() const override { return MemfdMaker(); }
  int64_t RegionBytes(const Config&, const ModelShape&) const override {
    return 0;
  }
  // The exchange region: of the collectives, and the token board behind.
  int SpareSlots(const ExpertShape&) const override { return 1; }
  void PlanRegions(const Config& config, const ModelShape& shape,
                   MemoryGeometry& geometry) const override {
    geometry[RegionKind::kExchange] =
        CollectivesBytes(config, shape) +
        TokenBoard::SizeBytes(BoardCapacity(config));
  }
  absl::StatusOr<std::unique_ptr<WorkerDevice>> MakeDevice(
      const Config& config, const WorkerPlan& plan, const WorkerMemory& memory,
      WorkerHost& host) const override {
    auto device = std::make_unique<CpuDevice>(
        config, plan, memory, host.MakeFence(memory.all_signals()));
    RETURN_IF_ERROR(device->Init(config, host));
    return device;
  }
  absl::StatusOr<CopyRates> MeasureCopies() const override {
    return MeasureCpuCopies(Cpu{});
  }
};

}  // namespace

absl::StatusOr<std::unique_ptr<WorkerPlatform>> MakeCpuPlatform(
    const Config& config) {
  if (config.workers.numerics == NumericsChoice::kFast) {
    return absl::InvalidArgumentError(
        "key 'workers.numerics' (--numerics): fast is of GPUs alone; the "
        "processor is exact");
  }
  return std::make_unique<CpuPlatform>();
}

}  // namespace moebius
