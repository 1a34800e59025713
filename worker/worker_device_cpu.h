// The processor as a worker's device.
#pragma once

#include <cstdint>
#include <memory>

#include "absl/status/statusor.h"
#include "common/config/config.h"
#include "worker/memory/worker_memory.h"
#include "worker/worker.h"
#include "worker/worker_device.h"
#include "worker/worker_plan.h"

namespace moebius {

// Size of the exchange region: of the collectives, and the token board behind.
int64_t CpuExchangeBytes(const Config& config, const WorkerPlan& plan);

// All parts over `memory`, whose peers are mapped. Fence, engine and check are
// the host's, who decides when things happen. All arguments outlive it.
absl::StatusOr<std::unique_ptr<WorkerDevice>> MakeCpuDevice(
    const Config& config, const WorkerPlan& plan, const WorkerMemory& memory,
    WorkerHost& host);

}  // namespace moebius
