#include "worker/worker_process.h"

#include <algorithm>
#include <memory>
#include <thread>

#include "absl/time/time.h"
#include "common/base/status_macros.h"
#include "common/channel/channel_keys.h"
#include "worker/peers/group_barrier.h"
#include "worker/steps/thread_step_engine.h"
#include "worker/switch/thread_weight_check.h"

namespace moebius {
namespace {

BarrierOptions BarrierOptionsOf(const Config& config) {
  const int cores =
      std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
  BarrierOptions options;
  options.spin_us =
      config.workers.spin_us >= 0
          ? config.workers.spin_us
          : DefaultSpinUs(config.workers.count, ThreadsOf(config), cores);
  return options;
}

class ProcessHost final : public WorkerHost {
 public:
  ProcessHost(const WorkerOptions& options, const WorkerPlace& place,
              VaultClient& vault)
      : options_(options), place_(place), vault_(vault) {}

  MemoryVault& vault() override { return vault_; }
  absl::StatusOr<std::unique_ptr<Link>> Connect() override {
    const Config& config = options_.config;
    if (config.control.transport == ControlTransport::kIpc) {
      return Link::Connect(place_.dir, options_.rank, options_.incarnation);
    }
    ASSIGN_OR_RETURN(const ChannelKeys keys,
                     ReadChannelKeys(place_.control_keys_fd));
    return Link::ConnectTcp(config.control.host, config.control.port, keys,
                            options_.rank, options_.incarnation);
  }
  std::unique_ptr<CpuFence> MakeFence(
      absl::Span<std::byte* const> signals) override {
    return std::make_unique<SignalsFence>(
        options_.rank, signals, BarrierOptionsOf(options_.config),
        absl::Milliseconds(options_.config.workers.step_timeout_ms));
  }
  absl::StatusOr<std::unique_ptr<StepEngine>> MakeStepEngine(
      StepRunner* runner) override {
    // Rank 0 reports for all; the others look when a command comes.
    return ThreadStepEngine::Create(
        runner, options_.rank == 0 ? ThreadStepEngine::Tell::kEachStep
                                   : ThreadStepEngine::Tell::kErrors);
  }
  std::unique_ptr<WeightCheck> MakeWeightCheck(
      const ExpertShape& shape, Rank rank, const std::byte* experts) override {
    return std::make_unique<ThreadWeightCheck>(shape, rank, experts);
  }
  void OnProgress(int64_t done, int64_t total) override {
    vault_.Progress(done, total).IgnoreError();
  }
  absl::Status OnReady() override { return vault_.Ready(); }
  void OnFailed(const absl::Status& why) override {
    vault_.Failed(why).IgnoreError();
  }

 private:
  const WorkerOptions& options_;
  const WorkerPlace& place_;
  VaultClient& vault_;
};

}  // namespace

absl::Status RunWorkerProcess(const WorkerOptions& options,
                              const WorkerPlace& place, VaultClient& vault,
                              const volatile std::sig_atomic_t* stop) {
  ProcessHost host(options, place, vault);
  return RunWorker(options, host, stop);
}

}  // namespace moebius
