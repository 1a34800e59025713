#include "worker/worker.h"

#include <unistd.h>

#include <algorithm>
#include <memory>
#include <thread>

#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "common/base/files.h"
#include "common/base/fnv.h"
#include "common/base/lasting_failure.h"
#include "common/base/logging.h"
#include "common/base/status_macros.h"
#include "common/config/model_config.h"
#include "common/faults/fault_point.h"
#include "worker/memory/worker_memory.h"
#include "worker/model/decoder.h"
#include "worker/model/families/families.h"
#include "worker/model/kv_layout.h"
#include "worker/model/safetensors.h"
#include "worker/model/weight_loader.h"
#include "worker/model/weight_sink_cpu.h"
#include "worker/model/weights.h"
#include "worker/peers/collectives_cpu.h"
#include "worker/peers/group_fence.h"
#include "worker/peers/token_board.h"
#include "worker/steps/step_executor.h"
#include "worker/switch/switch_executor.h"
#include "worker/switch/thread_mover.h"
#include "worker/switch/weight_checksum.h"
#include "worker/worker_loop.h"

namespace moebius {
namespace {

// KV memory of a worker when the configuration does not say: touched only as
// far as it is used.
constexpr int64_t kDefaultKvBytes = int64_t{512} << 20;
// Peers load their weights at their own pace.
constexpr absl::Duration kPeerTimeout = absl::Minutes(30);

constexpr int64_t RoundUp(int64_t bytes, int64_t multiple) {
  return (bytes + multiple - 1) / multiple * multiple;
}

TokenBoard::Capacity BoardCapacity(const Config& config) {
  return {static_cast<uint32_t>(config.scheduler.max_running),
          static_cast<uint32_t>(config.scheduler.token_budget)};
}

// How much of what this worker has.
struct Sizes {
  int context_length = 0;
  KvLayout kv;
  uint32_t num_pages = 0;
  int64_t exchange_bytes = 0;  // of the collectives; the token board follows
  MemoryGeometry geometry;
};

absl::StatusOr<Sizes> PlanSizes(const Config& config, const ModelShape& shape) {
  Sizes sizes;
  sizes.context_length =
      ContextLength(shape.spec.max_positions, config.model.max_model_len);
  sizes.kv =
      MakeKvLayout(shape.spec, config.workers.kv_dtype == KvDtype::kBfloat16
                                   ? KvType::kBf16
                                   : KvType::kFloat32);
  const int64_t page_bytes = sizes.kv.page_bytes();
  const int64_t blocks = (sizes.context_length + kPageTokens - 1) / kPageTokens;
  const int64_t pages_of_longest = blocks * sizes.kv.num_heads;
  int64_t pages = config.workers.kv_bytes / page_bytes;
  if (config.workers.kv_bytes == 0) {
    pages = std::max(
        pages_of_longest,
        std::min<int64_t>(kDefaultKvBytes / page_bytes,
                          pages_of_longest * config.scheduler.max_running));
  }
  if (pages < pages_of_longest) {
    return absl::InvalidArgumentError(
        absl::StrCat("workers.kv_bytes is ", config.workers.kv_bytes,
                     ", but one sequence of ", sizes.context_length,
                     " tokens needs ", pages_of_longest * page_bytes,
                     ": raise it, or lower model.max_model_len"));
  }
  sizes.num_pages =
      static_cast<uint32_t>(std::min<int64_t>(pages, kNoPage - 1));
  sizes.exchange_bytes = RoundUp(
      PlanExchange(shape, config.scheduler.token_budget).size_bytes, 64);
  sizes.geometry[RegionKind::kExperts] = shape.experts.region_bytes();
  sizes.geometry[RegionKind::kDense] = PlanDense(shape).size_bytes;
  sizes.geometry[RegionKind::kKv] = sizes.num_pages * page_bytes;
  sizes.geometry[RegionKind::kExchange] =
      sizes.exchange_bytes + TokenBoard::SizeBytes(BoardCapacity(config));
  return sizes;
}

// A number that workers of one model have in common.
absl::StatusOr<uint64_t> ModelDigest(const std::string& model_dir) {
  ASSIGN_OR_RETURN(const std::string text,
                   ReadFile(model_dir + "/config.json", kMaxModelConfigBytes));
  Fnv1a hash;
  for (unsigned char c : text) hash.Add(c);
  return hash.hash();
}

// What config.json makes of us. A successor would meet its errors as well.
struct PlannedModel {
  ModelShape shape;
  TensorNames names = nullptr;
  Sizes sizes;
  uint64_t digest = 0;
};

absl::StatusOr<PlannedModel> PlanModel(const Config& config) {
  PlannedModel plan;
  ASSIGN_OR_RETURN(const Model model, LoadModel(config.model.path));
  plan.names = model.names;
  ASSIGN_OR_RETURN(plan.shape, MakeModelShape(model.spec, config.workers.count,
                                              config.layout.spare_slots));
  ASSIGN_OR_RETURN(plan.sizes, PlanSizes(config, plan.shape));
  ASSIGN_OR_RETURN(plan.digest, ModelDigest(config.model.path));
  return plan;
}

std::vector<const std::byte*> BasesOf(const WorkerMemory& memory,
                                      int64_t offset) {
  std::vector<const std::byte*> bases;
  for (const std::byte* base : memory.bases(RegionKind::kExchange)) {
    bases.push_back(base + offset);
  }
  return bases;
}

// Reads our part of the checkpoint.
absl::StatusOr<wire::Loaded> LoadPart(const Config& config,
                                      const PlannedModel& plan,
                                      const WorkerMemory& memory,
                                      const wire::Load& load, WorkerHost& host,
                                      ThreadPool* pool) {
  const ModelShape& shape = plan.shape;
  RETURN_IF_ERROR(Validate(load.experts, shape.experts));
  std::unique_ptr<TensorSource> source;
  if (config.model.load_format == LoadFormat::kDummy) {
    source = MakeDummyWeights();
  } else {
    ASSIGN_OR_RETURN(source, Checkpoint::Open(config.model.path));
  }
  const auto sink =
      MakeCpuWeightSink(memory.mutable_base(RegionKind::kDense),
                        memory.mutable_base(RegionKind::kExperts));
  ASSIGN_OR_RETURN(
      const LoadStats loaded,
      LoadWeights({shape, plan.names, memory.rank(), load.experts}, *source,
                  *sink, [&host](int64_t done, int64_t total) {
                    host.OnProgress(done, total);
                  }));
  LogDebug("loaded ", loaded.bytes_written, " bytes from ", loaded.bytes_read,
           " read");
  const std::byte* experts = memory.base(RegionKind::kExperts, memory.rank());
  const uint64_t checksum =
      WeightChecksum(shape.experts, load.experts, memory.rank(), experts, pool);
  return wire::Loaded{0, static_cast<uint64_t>(loaded.bytes_written), checksum};
}

absl::Status MeetMemories(WorkerMemory& memory,
                          absl::Span<const Incarnation> memories,
                          MemoryVault& vault) {
  if (memories.size() != static_cast<size_t>(memory.num_ranks())) {
    return absl::InvalidArgumentError(
        absl::StrCat("memories of ", memories.size(), " ranks"));
  }
  for (Rank rank = 0; rank < memory.num_ranks(); ++rank) {
    RETURN_IF_ERROR(memory.MapAnew(rank, memories[rank], vault));
  }
  return absl::OkStatus();
}

// The model over this rank's memory, and its peers'.
struct CpuModel {
  std::unique_ptr<Collectives<Cpu>> peers;
  std::unique_ptr<Decoder<Cpu>> decoder;
};

absl::StatusOr<CpuModel> CreateModel(const Cpu& device, const Config& config,
                                     const PlannedModel& plan,
                                     const WorkerMemory& memory,
                                     Barrier* barrier) {
  const Rank rank = memory.rank();
  CpuModel model;
  Collectives<Cpu>::Options peers;
  peers.shape = plan.shape;
  peers.rank = rank;
  peers.max_rows = config.scheduler.token_budget;
  peers.exchange = memory.mutable_base(RegionKind::kExchange);
  peers.peer_exchange = BasesOf(memory, 0);
  peers.barrier = barrier;
  ASSIGN_OR_RETURN(model.peers, Collectives<Cpu>::Create(device, peers));
  DecoderOptions<Cpu> decoder;
  decoder.shape = plan.shape;
  decoder.rank = rank;
  decoder.max_rows = config.scheduler.token_budget;
  decoder.max_positions = plan.sizes.context_length;
  decoder.dense = memory.base(RegionKind::kDense, rank);
  decoder.experts = memory.base(RegionKind::kExperts, rank);
  decoder.kv = {memory.mutable_base(RegionKind::kKv), plan.sizes.num_pages,
                PageFormatOf(plan.sizes.kv)};
  decoder.peers = model.peers.get();
  ASSIGN_OR_RETURN(model.decoder, Decoder<Cpu>::Create(device, decoder));
  return model;
}

SequenceTable::Options TableOptions(const Config& config, Rank rank,
                                    const ModelShape& shape,
                                    const Sizes& sizes) {
  SequenceTable::Options options;
  options.rank = rank;
  options.num_ranks = config.workers.count;
  options.attention = shape.attention;
  options.max_slots = static_cast<uint32_t>(config.scheduler.max_running);
  options.max_rows = static_cast<uint32_t>(config.scheduler.token_budget);
  options.num_pages = sizes.num_pages;
  options.max_positions = static_cast<uint32_t>(sizes.context_length);
  options.vocab_size = shape.spec.vocab_size;
  return options;
}

wire::Hello HelloOf(const Config& config, const PlannedModel& plan,
                    const WorkerMemory& memory) {
  wire::Hello hello;
  hello.rank = memory.rank();
  hello.num_ranks = memory.num_ranks();
  hello.pid = static_cast<uint32_t>(getpid());
  hello.num_pages = plan.sizes.num_pages;
  hello.max_slots = config.scheduler.max_running;
  hello.model_digest = plan.digest;
  hello.memory = memory.memory_of(memory.rank());
  hello.padding_bytes =
      static_cast<uint64_t>(plan.shape.experts.padding_bytes());
  return hello;
}

// Ours, and what we see of the peers'.
absl::StatusOr<std::unique_ptr<WorkerMemory>> MakeMemory(
    const WorkerOptions& options, const Sizes& sizes, WorkerHost& host) {
  WorkerMemoryOptions memory_options;
  memory_options.incarnation = options.incarnation;
  const auto make =
      options.adopt ? &WorkerMemory::Adopt : &WorkerMemory::Create;
  ASSIGN_OR_RETURN(auto memory,
                   make(options.rank, options.config.workers.count,
                        sizes.geometry, host.vault(), memory_options));
  RETURN_IF_ERROR(memory->MapPeers(host.vault(), kPeerTimeout));
  if (options.adopt) RETURN_IF_ERROR(FaultPoint(FaultId::kWorkerAdopt));
  return memory;
}

std::unique_ptr<CpuFence> MakeFence(const WorkerOptions& options,
                                    const WorkerMemory& memory,
                                    WorkerHost& host) {
  std::unique_ptr<CpuFence> fence = host.MakeFence(memory.all_signals());
  // A peer that still waits for our predecessor waits in vain.
  if (options.adopt) {
    fence->Abandon();
  } else if (options.incarnation.value > 1) {
    fence->AbandonForPeers();
  }
  return fence;
}

}  // namespace

int ThreadsOf(const Config& config) {
  if (config.workers.threads > 0) return config.workers.threads;
  const int cores =
      std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
  return std::max(1, cores / config.workers.count);
}

absl::Status RunWorker(const WorkerOptions& options, WorkerHost& host,
                       const volatile std::sig_atomic_t* stop) {
  const Config& config = options.config;
  const Rank rank = options.rank;
  const int num_ranks = config.workers.count;
  const absl::StatusOr<PlannedModel> planned = PlanModel(config);
  if (!planned.ok()) return Lasting(planned.status());
  const ModelShape& shape = planned->shape;
  const Sizes& sizes = planned->sizes;

  ASSIGN_OR_RETURN(const auto memory, MakeMemory(options, sizes, host));
  const std::unique_ptr<CpuFence> fence = MakeFence(options, *memory, host);
  ThreadPool pool(ThreadsOf(config) - 1);
  ASSIGN_OR_RETURN(
      const CpuModel model,
      CreateModel(Cpu{&pool}, config, *planned, *memory, fence.get()));
  DeviceSlots slots(rank, config.scheduler.max_running, shape.spec.vocab_size);
  SequenceTable sequences(TableOptions(config, rank, shape, sizes), &slots);
  TokenBoard board(
      memory->mutable_base(RegionKind::kExchange) + sizes.exchange_bytes,
      BasesOf(*memory, sizes.exchange_bytes), BoardCapacity(config));
  StepExecutor steps(StepContext{
      rank, num_ranks, &slots,
      [&model](const Pass<Cpu>& pass) { return model.decoder->Run(pass); },
      &board, fence.get()});
  ASSIGN_OR_RETURN(const auto engine, host.MakeStepEngine(&steps));
  ThreadMover mover(memory.get(), sizes.kv.page_bytes(), &pool);
  SwitchExecutor switches(SwitchContext{
      rank, num_ranks, shape.experts, shape.attention, sizes.num_pages,
      memory.get(), &sequences, fence.get(), &pool, &mover});

  const std::unique_ptr<WeightCheck> check = host.MakeWeightCheck(
      shape.experts, rank, memory->base(RegionKind::kExperts, rank));

  ASSIGN_OR_RETURN(const auto link, host.Connect());
  WorkerLoop::Context loop;
  loop.rank = rank;
  loop.incarnation = options.incarnation;
  loop.hello = HelloOf(config, *planned, *memory);
  loop.load = [&](const wire::Load& load) -> absl::StatusOr<wire::Loaded> {
    auto loaded = LoadPart(config, *planned, *memory, load, host, &pool);
    if (!loaded.ok()) return LastingIfOfInput(loaded.status());
    return loaded;
  };
  loop.on_failed = [&](const absl::Status& why) { host.OnFailed(why); };
  loop.meet = [&](absl::Span<const Incarnation> memories) {
    return MeetMemories(*memory, memories, host.vault());
  };
  loop.link = link.get();
  loop.engine = engine.get();
  loop.switches = &switches;
  loop.sequences = &sequences;
  loop.fence = fence.get();
  loop.signals = memory->own_signals();
  loop.check = check.get();
  RETURN_IF_ERROR(host.OnReady());
  return WorkerLoop(loop).Run(stop);
}

}  // namespace moebius
