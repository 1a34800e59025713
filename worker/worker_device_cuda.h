// A GPU as a worker's device.
#pragma once

#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "common/config/config.h"
#include "worker/memory/worker_memory.h"
#include "worker/model/model_shape.h"
#include "worker/worker_device.h"
#include "worker/worker_plan.h"

namespace moebius {

// Sizes the exchange region, for the collectives, and the signals, which hold
// the board of results behind the words of barriers.
void PlanGpuRegions(const Config& config, const ModelShape& shape,
                    MemoryGeometry& geometry);

struct GpuPlace {
  int gpu = 0;                   // of this process
  std::vector<int> gpu_of_rank;  // as GpuMoverOptions has it
};

// All parts over `memory`, whose peers are mapped: regions of that GPU, planned
// by PlanGpuRegions(). All references outlive it.
//
// Numerics are those of `config`, fast when it does not say. Steps are launched
// behind one another (worker/steps/ahead_steps.h).
absl::StatusOr<std::unique_ptr<WorkerDevice>> MakeGpuDevice(
    const Config& config, const WorkerPlan& plan, const WorkerMemory& memory,
    const GpuPlace& place);

}  // namespace moebius
