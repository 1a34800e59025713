// The processor as a worker's device.
#pragma once

#include <memory>

#include "absl/status/statusor.h"
#include "worker/worker_platform.h"

namespace moebius {

// kInvalidArgument for numerics that it does not have.
absl::StatusOr<std::unique_ptr<WorkerPlatform>> MakeCpuPlatform(
    const Config& config);

}  // namespace moebius
