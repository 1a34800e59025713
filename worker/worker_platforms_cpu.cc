// The platforms of a program that was built without the CUDA Toolkit.
#include "worker/worker_device_cpu.h"
#include "worker/worker_platform.h"

namespace moebius {

absl::StatusOr<std::unique_ptr<WorkerPlatform>> ChoosePlatform(
    const Config& config, Rank) {
  if (config.workers.device == DeviceChoice::kCuda) {
    return absl::InvalidArgumentError(
        "key 'workers.device' (--device): this moebius-worker was built "
        "without the CUDA Toolkit, so it has no cuda; build it where nvcc is "
        "found, or say cpu");
  }
  return MakeCpuPlatform(config);
}

}  // namespace moebius
