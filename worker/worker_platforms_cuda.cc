// The platforms of a program that was built with the CUDA Toolkit.
#include <algorithm>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/base/logging.h"
#include "common/base/status_macros.h"
#include "kernels/cuda/gpu.h"
#include "worker/bench/peer_copies.h"
#include "worker/bench/probe_cuda.h"
#include "worker/memory/region_cuda.h"
#include "worker/memory/region_ipc_cuda.h"
#include "worker/switch/copy_choice.h"
#include "worker/worker_device_cpu.h"
#include "worker/worker_device_cuda.h"
#include "worker/worker_platform.h"

namespace moebius {
namespace {

// What a process takes of a GPU besides its regions and buffers: context and
// code of the kernels.
constexpr int64_t kContextBytes = int64_t{768} << 20;

// Buffers of decoder, collectives and operators, no less than they take: some
// twelve rows of activations, and what lies between router and experts.
int64_t WorkspaceBytes(const Config& config, const ModelShape& shape) {
  const int64_t rows = config.scheduler.token_budget;
  const int64_t hidden = shape.spec.hidden_size;
  const int64_t heads = shape.q_size() + 2 * shape.kv_size();
  const int64_t assignments =
      rows * std::max(1, shape.top_k) *
      (shape.experts.rows_per_block() * int64_t{shape.num_ranks} + hidden / 2 +
       8);
  const int64_t logits = int64_t{256} * shape.spec.vocab_size;
  return 4 * (rows * (12 * hidden + 2 * heads) + assignments + 2 * logits);
}

class GpuPlatform final : public WorkerPlatform {
 public:
  GpuPlatform(int gpu, std::vector<int> gpu_of_rank, int64_t total_bytes,
              std::unique_ptr<RegionMaker> maker)
      : place_{gpu, std::move(gpu_of_rank)},
        total_bytes_(total_bytes),
        maker_(std::move(maker)) {}

  const RegionMaker& maker() const override { return *maker_; }

  // A share of all memory, not of what is free: a successor has to come to the
  // same number.
  int64_t RegionBytes(const Config& config,
                      const ModelShape& shape) const override {
    const double all =
        static_cast<double>(total_bytes_) * config.workers.gpu_memory_fraction;
    const int64_t share = static_cast<int64_t>(all) / config.workers.per_gpu;
    return std::max<int64_t>(
        1, share - kContextBytes - WorkspaceBytes(config, shape));
  }

  int SpareSlots(const ExpertShape& shape) const override {
    return SpareSlotsByDefault(shape.num_ranks, shape.block_bytes());
  }

  void PlanRegions(const Config& config, const ModelShape& shape,
                   MemoryGeometry& geometry) const override {
    PlanGpuRegions(config, shape, geometry);
  }

  absl::StatusOr<std::unique_ptr<WorkerDevice>> MakeDevice(
      const Config& config, const WorkerPlan& plan, const WorkerMemory& memory,
      WorkerHost&) const override {
    return MakeGpuDevice(config, plan, memory, place_);
  }

  absl::StatusOr<CopyRates> MeasureCopies() const override {
    ASSIGN_OR_RETURN(CopyRates rates, MeasureGpuCopies(place_.gpu));
    const int num_gpus = 1 + place_.gpu_of_rank.back();
    if (num_gpus > 1) {
      ASSIGN_OR_RETURN(rates.between_gpus, MeasurePeerCopies(num_gpus));
    }
    return rates;
  }

 private:
  const GpuPlace place_;
  const int64_t total_bytes_;
  const std::unique_ptr<RegionMaker> maker_;
};

// What whoever lets workers share a GPU should know; said once.
void TellOfSharing(int gpu) {
  if (ProcessesShareGpu(gpu)) {
    LogWarn(
        "workers share a GPU under MPS: when one is killed, the others on "
        "that GPU may have to begin anew with it");
  } else {
    LogWarn(
        "workers share a GPU without MPS: their kernels take turns, which "
        "is many times slower; `nvidia-cuda-mps-control -d` starts it");
  }
}

// Descriptors where they can be had, unless the configuration says how.
absl::StatusOr<std::unique_ptr<RegionMaker>> ChooseRegions(GpuSharing sharing,
                                                           int gpu) {
  if (sharing != GpuSharing::kHandle) {
    const absl::Status descriptors = CheckGpuRegions(gpu);
    if (descriptors.ok()) return MakeGpuRegionMaker(gpu);
    if (sharing == GpuSharing::kDescriptor) return descriptors;
    LogWarn("GPU ", gpu, ": memory cannot be exported as descriptors (",
            descriptors.message(),
            "), so a worker that dies will read its weights again");
  }
  RETURN_IF_ERROR(CheckIpcRegions(gpu));
  return MakeIpcRegionMaker(gpu);
}

// Ranks fill one GPU after the other.
absl::StatusOr<std::unique_ptr<WorkerPlatform>> MakeGpuPlatform(
    const Config& config, Rank rank) {
  std::vector<int> gpu_of_rank;
  for (Rank r = 0; r < config.workers.count; ++r) {
    gpu_of_rank.push_back(r / config.workers.per_gpu);
  }
  const int gpu = gpu_of_rank[rank];
  RETURN_IF_ERROR(UseGpu(gpu));
  ASSIGN_OR_RETURN(const GpuMemory memory, MemoryOfGpu());
  ASSIGN_OR_RETURN(auto maker, ChooseRegions(config.workers.gpu_sharing, gpu));
  if (config.workers.per_gpu > 1 && rank == 0) TellOfSharing(gpu);
  return std::make_unique<GpuPlatform>(gpu, std::move(gpu_of_rank),
                                       memory.total_bytes, std::move(maker));
}

}  // namespace

absl::StatusOr<std::unique_ptr<WorkerPlatform>> ChoosePlatform(
    const Config& config, Rank rank) {
  const DeviceChoice wanted = config.workers.device;
  if (wanted == DeviceChoice::kCpu) return MakeCpuPlatform(config);
  const int per_gpu = config.workers.per_gpu;
  const int needed = (config.workers.count + per_gpu - 1) / per_gpu;
  const int there = NumGpus();
  if (there >= needed) return MakeGpuPlatform(config, rank);
  if (wanted == DeviceChoice::kAuto) return MakeCpuPlatform(config);
  return absl::InvalidArgumentError(absl::StrCat(
      "key 'workers.device' (--device): cuda with ", config.workers.count,
      " workers, ", per_gpu, " on each GPU, needs ", needed,
      "; the driver shows ", there,
      ". Say more --workers-per-gpu, fewer --workers, or --device cpu"));
}

}  // namespace moebius
