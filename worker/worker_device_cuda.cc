#include "worker/worker_device_cuda.h"

#include <algorithm>
#include <thread>
#include <utility>
#include <vector>

#include "common/base/logging.h"
#include "common/base/status_macros.h"
#include "common/config/layout_config.h"
#include "kernels/cuda/buffer.h"
#include "kernels/cuda/gpu.h"
#include "kernels/cuda/workspace.h"
#include "worker/bench/probe_cuda.h"
#include "worker/device_memory.h"
#include "worker/model/decoder.h"
#include "worker/model/pass_cuda.h"
#include "worker/model/weight_sink_cuda.h"
#include "worker/peers/collectives_cuda.h"
#include "worker/peers/result_board.h"
#include "worker/steps/ahead_steps.h"
#include "worker/steps/launch_step_engine.h"
#include "worker/switch/gpu_mover_cuda.h"
#include "worker/switch/gpu_weight_check.h"

namespace moebius {
namespace {

// Of kernels that wait for others, where workers share a GPU.
constexpr int kBlocksOfSharedGpu = 16;

// Where the board of results begins in the signals: on a page of its own.
constexpr int64_t kBoardOffset = 4096;
static_assert(sizeof(SignalsBlock) <= kBoardOffset);

bool IsExact(const Config& config) {
  return config.workers.numerics == NumericsChoice::kExact;
}

absl::Duration StepTimeout(const Config& config) {
  return absl::Milliseconds(config.workers.step_timeout_ms);
}

// EP and one other layout, when they follow one another, always lie on their
// home sides; with others each comes to lie on either.
std::vector<StepLayout> StatesToCapture(const std::vector<Layout>& layouts) {
  const bool alternate =
      layouts.size() < 2 ||
      (layouts.size() == 2 && (layouts[0].is_ep() || layouts[1].is_ep()));
  std::vector<StepLayout> states;
  for (const Layout layout : layouts) {
    const Side home = HomeSide(layout);
    states.push_back({layout, ExpertsState::At(layout, home)});
    if (alternate) continue;
    states.push_back({layout, ExpertsState::At(layout, OtherSide(home))});
  }
  return states;
}

std::unique_ptr<SignalsFence> MakeFence(const Config& config,
                                        const WorkerMemory& memory) {
  const int cores =
      std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
  BarrierOptions options;
  options.spin_us = config.workers.spin_us >= 0
                        ? config.workers.spin_us
                        : DefaultSpinUs(config.workers.count, 1, cores);
  return std::make_unique<SignalsFence>(memory.rank(), memory.all_signals(),
                                        options, StepTimeout(config));
}

std::vector<const std::byte*> BoardsOf(const WorkerMemory& memory) {
  std::vector<const std::byte*> boards;
  for (std::byte* signals : memory.all_signals()) {
    boards.push_back(signals + kBoardOffset);
  }
  return boards;
}

template <Numerics N>
class GpuDevice final : public WorkerDevice {
 public:
  GpuDevice(const Config& config, const WorkerPlan& plan,
            const WorkerMemory& memory, const GpuPlace& place)
      : config_(config),
        plan_(plan),
        memory_(memory),
        place_(place),
        fence_(MakeFence(config, memory)),
        stream_(GpuStream::Create(place.gpu, &failure_)),
        device_{stream_->get(), &failure_, stream_->num_multiprocessors(),
                &workspace_},
        slots_(memory.rank(), config.scheduler.max_running,
               plan.shape.spec.vocab_size),
        board_(BoardsOf(memory), config.scheduler.token_budget) {}

  absl::Status Init() {
    RETURN_IF_ERROR(failure_.status());
    RETURN_IF_ERROR(MakePeers());
    RETURN_IF_ERROR(MakeDecoder());
    RETURN_IF_ERROR(MakePasses());
    GpuMoverOptions mover;
    mover.gpu = place_.gpu;
    mover.page_bytes = plan_.kv.page_bytes();
    mover.gpu_of_rank = place_.gpu_of_rank;
    ASSIGN_OR_RETURN(mover_, MakeGpuMover(&memory_, mover));
    ASSIGN_OR_RETURN(check_, MakeGpuWeightCheck(CheckOptions()));
    RETURN_IF_ERROR(MakeSteps());
    return TellMemory();
  }

  GroupFence& fence() override { return *fence_; }
  Barrier& barrier() override { return *fence_; }
  SlotTables& slots() override { return slots_; }
  StepEngine& engine() override { return *engine_; }
  Mover& mover() override { return *mover_; }
  ThreadPool* copy_threads() override { return nullptr; }
  WeightCheck& check() override { return *check_; }
  absl::Status FollowPeers() override { return passes_->FollowPeers(); }
  std::unique_ptr<WeightSink> MakeSink() override {
    return MakeGpuWeightSink(memory_.mutable_base(RegionKind::kDense),
                             memory_.mutable_base(RegionKind::kExperts),
                             place_.gpu);
  }
  // An error is noted, so that no step runs after it.
  uint64_t Checksum(const ExpertsState& state) override {
    const auto sum = GpuWeightChecksum(CheckOptions(), state);
    if (sum.ok()) return *sum;
    LogError("checksum of weights: ", sum.status().ToString());
    failure_.Note(sum.status());
    return 0;
  }
  absl::StatusOr<std::unique_ptr<DeviceProbe>> MakeProbe() override {
    return MakeGpuProbe<N>(device_, place_.gpu, decoder_.get());
  }

 private:
  using D = Cuda<N>;

  GpuWeightCheckOptions CheckOptions() {
    return {place_.gpu, plan_.shape.experts, memory_.rank(),
            memory_.base(RegionKind::kExperts, memory_.rank()), &failure_};
  }

  absl::Status MakePeers() {
    typename Collectives<D>::Options options;
    options.shape = plan_.shape;
    options.rank = memory_.rank();
    options.max_rows = config_.scheduler.token_budget;
    options.max_slots = config_.scheduler.max_running;
    for (Rank r = 0; r < memory_.num_ranks(); ++r) {
      options.exchange.push_back(memory_.mutable_exchange(r));
      options.signals.push_back(memory_.signals(r));
    }
    options.fence = fence_.get();
    options.timeout = StepTimeout(config_);
    options.most_waiting_blocks = config_.workers.per_gpu > 1
                                      ? kBlocksOfSharedGpu
                                      : stream_->num_multiprocessors();
    ASSIGN_OR_RETURN(peers_, Collectives<D>::Create(device_, options));
    return absl::OkStatus();
  }

  absl::Status MakeDecoder() {
    DecoderOptions<D> options;
    options.shape = plan_.shape;
    options.rank = memory_.rank();
    options.max_rows = config_.scheduler.token_budget;
    options.max_positions = plan_.context_length;
    options.dense = memory_.base(RegionKind::kDense, options.rank);
    options.experts = memory_.base(RegionKind::kExperts, options.rank);
    options.kv = {memory_.mutable_base(RegionKind::kKv), plan_.num_pages,
                  PageFormatOf(plan_.kv)};
    options.peers = peers_.get();
    ASSIGN_OR_RETURN(decoder_, Decoder<D>::Create(device_, options));
    return absl::OkStatus();
  }

  absl::Status MakePasses() {
    typename GpuPasses<N>::Options options;
    options.gpu = place_.gpu;
    options.max_rows = config_.scheduler.token_budget;
    options.vocabulary = plan_.shape.spec.vocab_size;
    const int64_t blocks =
        (plan_.context_length + kPageTokens - 1) / kPageTokens;
    options.page_ids =
        std::min<int64_t>(plan_.num_pages, blocks * plan_.kv.num_heads *
                                               config_.scheduler.max_running);
    options.stream = stream_.get();
    options.decoder = decoder_.get();
    options.peers = peers_.get();
    std::byte* const board = memory_.signals(memory_.rank()) + kBoardOffset;
    ASSIGN_OR_RETURN(
        board_mapping_,
        HostMapping::Create(board, ResultBoard::SizeBytes(options.max_rows)));
    options.results = reinterpret_cast<GpuSampledRow*>(board);
    options.captured = ResidentLayouts(config_);
    ASSIGN_OR_RETURN(passes_, GpuPasses<N>::Create(device_, options));
    return passes_->CaptureAhead(StatesToCapture(*options.captured));
  }

  absl::Status TellMemory() const {
    ASSIGN_OR_RETURN(const GpuMemory of_gpu, MemoryOfGpu());
    DeviceMemory memory = RegionsOf(plan_);
    memory.total_bytes = of_gpu.total_bytes;
    memory.free_bytes = of_gpu.free_bytes;
    memory.workspace_bytes = BytesOnGpu();
    memory.graph_bytes = passes_->graph_bytes();
    memory.num_graphs = passes_->num_graphs();
    LogInfo(ToText(memory));
    return absl::OkStatus();
  }

  absl::Status MakeSteps() {
    AheadContext context;
    context.rank = memory_.rank();
    context.num_ranks = memory_.num_ranks();
    context.slots = &slots_;
    context.passes = passes_.get();
    context.board = &board_;
    context.barrier = fence_.get();
    steps_ = std::make_unique<AheadSteps>(context);
    // Rank 0 reports for all; the others look when a command comes.
    ASSIGN_OR_RETURN(
        engine_,
        LaunchStepEngine::Create(
            steps_.get(), context.rank == 0 ? StepEngine::Tell::kEachStep
                                            : StepEngine::Tell::kErrors));
    return absl::OkStatus();
  }

  const Config& config_;
  const WorkerPlan& plan_;
  const WorkerMemory& memory_;
  const GpuPlace place_;
  const std::unique_ptr<SignalsFence> fence_;
  CudaFailure failure_;
  const std::unique_ptr<GpuStream> stream_;
  Workspace workspace_;
  const D device_;
  std::unique_ptr<Collectives<D>> peers_;
  std::unique_ptr<Decoder<D>> decoder_;
  std::unique_ptr<HostMapping> board_mapping_;
  std::unique_ptr<GpuPasses<N>> passes_;
  DeviceSlots slots_;
  const ResultBoard board_;
  std::unique_ptr<AheadSteps> steps_;
  std::unique_ptr<Mover> mover_;
  std::unique_ptr<WeightCheck> check_;
  std::unique_ptr<StepEngine> engine_;  // last: it runs what is above
};

template <Numerics N>
absl::StatusOr<std::unique_ptr<WorkerDevice>> Make(const Config& config,
                                                   const WorkerPlan& plan,
                                                   const WorkerMemory& memory,
                                                   const GpuPlace& place) {
  RETURN_IF_ERROR(UseGpu(place.gpu));
  auto device = std::make_unique<GpuDevice<N>>(config, plan, memory, place);
  RETURN_IF_ERROR(device->Init());
  return device;
}

template <Numerics N>
int64_t ExchangeBytes(const Config& config, const ModelShape& shape) {
  return Collectives<Cuda<N>>::ExchangeBytes(
      shape, config.scheduler.token_budget, config.scheduler.max_running);
}

}  // namespace

void PlanGpuRegions(const Config& config, const ModelShape& shape,
                    MemoryGeometry& geometry) {
  geometry[RegionKind::kExchange] =
      IsExact(config) ? ExchangeBytes<Numerics::kExact>(config, shape)
                      : ExchangeBytes<Numerics::kFast>(config, shape);
  geometry[RegionKind::kSignals] =
      kBoardOffset + ResultBoard::SizeBytes(config.scheduler.token_budget);
}

absl::StatusOr<std::unique_ptr<WorkerDevice>> MakeGpuDevice(
    const Config& config, const WorkerPlan& plan, const WorkerMemory& memory,
    const GpuPlace& place) {
  return IsExact(config) ? Make<Numerics::kExact>(config, plan, memory, place)
                         : Make<Numerics::kFast>(config, plan, memory, place);
}

}  // namespace moebius
