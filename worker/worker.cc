#include "worker/worker.h"

#include <unistd.h>

#include <algorithm>
#include <memory>
#include <thread>

#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "common/base/lasting_failure.h"
#include "common/base/logging.h"
#include "common/base/status_macros.h"
#include "common/faults/fault_point.h"
#include "worker/load_part.h"
#include "worker/memory/worker_memory.h"
#include "worker/steps/sequence_table.h"
#include "worker/switch/switch_executor.h"
#include "worker/worker_loop.h"
#include "worker/worker_plan.h"
#include "worker/worker_platform.h"

namespace moebius {
namespace {

// Peers load their weights at their own pace.
constexpr absl::Duration kPeerTimeout = absl::Minutes(30);

absl::StatusOr<wire::Loaded> Load(const WorkerOptions& options,
                                  const WorkerPlan& plan,
                                  const wire::Load& load, WorkerHost& host,
                                  WorkerDevice& device) {
  ASSIGN_OR_RETURN(const LoadStats loaded,
                   LoadPart(options.config, plan, options.rank, load.experts,
                            device, [&host](int64_t done, int64_t total) {
                              host.OnProgress(done, total);
                            }));
  LogDebug("loaded ", loaded.bytes_written, " bytes from ", loaded.bytes_read,
           " read");
  return wire::Loaded{0, static_cast<uint64_t>(loaded.bytes_written),
                      device.Checksum(load.experts)};
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

SequenceTable::Options TableOptions(const Config& config, Rank rank,
                                    const WorkerPlan& plan) {
  SequenceTable::Options options;
  options.rank = rank;
  options.num_ranks = config.workers.count;
  options.attention = plan.shape.attention;
  options.max_slots = static_cast<uint32_t>(config.scheduler.max_running);
  options.max_rows = static_cast<uint32_t>(config.scheduler.token_budget);
  options.num_pages = plan.num_pages;
  options.max_positions = static_cast<uint32_t>(plan.context_length);
  options.vocab_size = plan.shape.spec.vocab_size;
  return options;
}

wire::Hello HelloOf(const Config& config, const WorkerPlan& plan,
                    const WorkerMemory& memory) {
  wire::Hello hello;
  hello.rank = memory.rank();
  hello.num_ranks = memory.num_ranks();
  hello.pid = static_cast<uint32_t>(getpid());
  hello.num_pages = plan.num_pages;
  hello.max_slots = config.scheduler.max_running;
  hello.model_digest = plan.model_digest;
  hello.memory = memory.memory_of(memory.rank());
  hello.padding_bytes =
      static_cast<uint64_t>(plan.shape.experts.padding_bytes());
  return hello;
}

// Ours, and what we see of the peers'.
absl::StatusOr<std::unique_ptr<WorkerMemory>> MakeMemory(
    const WorkerOptions& options, const WorkerPlatform& platform,
    const WorkerPlan& plan, WorkerHost& host) {
  WorkerMemoryOptions memory_options;
  memory_options.maker = &platform.maker();
  memory_options.incarnation = options.incarnation;
  const auto make =
      options.adopt ? &WorkerMemory::Adopt : &WorkerMemory::Create;
  ASSIGN_OR_RETURN(auto memory,
                   make(options.rank, options.config.workers.count,
                        plan.geometry, host.vault(), memory_options));
  RETURN_IF_ERROR(memory->MapPeers(host.vault(), kPeerTimeout));
  if (options.adopt) RETURN_IF_ERROR(FaultPoint(FaultId::kWorkerAdopt));
  return memory;
}

// A peer that still waits for our predecessor waits in vain.
void TakeOver(const WorkerOptions& options, GroupFence& fence) {
  if (options.adopt) {
    fence.Abandon();
  } else if (options.incarnation.value > 1) {
    fence.AbandonForPeers();
  }
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
  const auto chosen = ChoosePlatform(config, rank);
  if (!chosen.ok()) return Lasting(chosen.status());
  const WorkerPlatform& platform = **chosen;
  const absl::StatusOr<WorkerPlan> planned = PlanWorker(config, platform);
  if (!planned.ok()) return Lasting(planned.status());
  const WorkerPlan& plan = *planned;

  ASSIGN_OR_RETURN(const auto memory,
                   MakeMemory(options, platform, plan, host));
  ASSIGN_OR_RETURN(const auto device,
                   platform.MakeDevice(config, plan, *memory, host));
  TakeOver(options, device->fence());
  SequenceTable sequences(TableOptions(config, rank, plan), &device->slots());
  SwitchExecutor switches(SwitchContext{
      rank, config.workers.count, plan.shape.experts, plan.shape.attention,
      plan.num_pages, memory.get(), &sequences, &device->barrier(),
      device->copy_threads(), &device->mover()});

  ASSIGN_OR_RETURN(const auto link, host.Connect());
  WorkerLoop::Context loop;
  loop.rank = rank;
  loop.incarnation = options.incarnation;
  loop.hello = HelloOf(config, plan, *memory);
  loop.load = [&](const wire::Load& load) -> absl::StatusOr<wire::Loaded> {
    auto loaded = Load(options, plan, load, host, *device);
    if (!loaded.ok()) return LastingIfOfInput(loaded.status());
    return loaded;
  };
  loop.on_failed = [&](const absl::Status& why) { host.OnFailed(why); };
  loop.meet = [&](absl::Span<const Incarnation> memories) -> absl::Status {
    RETURN_IF_ERROR(MeetMemories(*memory, memories, host.vault()));
    return device->FollowPeers();
  };
  loop.link = link.get();
  loop.engine = &device->engine();
  loop.switches = &switches;
  loop.sequences = &sequences;
  loop.fence = &device->fence();
  loop.signals = memory->own_signals();
  loop.check = &device->check();
  RETURN_IF_ERROR(host.OnReady());
  return WorkerLoop(loop).Run(stop);
}

}  // namespace moebius
