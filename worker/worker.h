// A worker from its start to its end: memory, weights, peers, loop.
#pragma once

#include <csignal>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "common/base/ids.h"
#include "common/channel/channel.h"
#include "common/config/config.h"
#include "common/vault/memory_vault.h"
#include "worker/peers/group_fence.h"
#include "worker/steps/step_engine.h"
#include "worker/steps/step_runner.h"
#include "worker/switch/weight_check.h"

namespace moebius {

struct WorkerOptions {
  Config config;
  Rank rank = 0;
  Incarnation incarnation{1};
  // Go on with the memory of our predecessor, which the vault keeps.
  bool adopt = false;
};

// What a worker needs of its surroundings.
class WorkerHost {
 public:
  virtual ~WorkerHost() = default;
  virtual MemoryVault& vault() = 0;
  virtual absl::StatusOr<std::unique_ptr<Link>> Connect() = 0;
  // `signals` as GroupBarrier takes them.
  virtual std::unique_ptr<CpuFence> MakeFence(
      absl::Span<std::byte* const> signals) = 0;
  // Carries steps out by `runner`, which outlives it.
  virtual absl::StatusOr<std::unique_ptr<StepEngine>> MakeStepEngine(
      StepRunner* runner) = 0;
  // `experts`: base of the region, which outlives it.
  virtual std::unique_ptr<WeightCheck> MakeWeightCheck(
      const ExpertShape& shape, Rank rank, const std::byte* experts) = 0;
  // `done` of `total` bytes of weights are loaded.
  virtual void OnProgress(int64_t done, int64_t total) = 0;
  // Everything is in place; Hello goes out next.
  virtual absl::Status OnReady() = 0;
  // The worker cannot go on, and nobody else knows yet: it is ended once its
  // coordinator hears of it.
  virtual void OnFailed(const absl::Status& why) = 0;
};

// Runs the worker until it is shut down or `*stop` is set; then OK. Errors name
// what failed, marked as lasting (lasting_failure.h) where a successor
// would find the same; the caller reports them to the launcher.
absl::Status RunWorker(const WorkerOptions& options, WorkerHost& host,
                       const volatile std::sig_atomic_t* stop);

// How many threads each worker computes with.
int ThreadsOf(const Config& config);

}  // namespace moebius
