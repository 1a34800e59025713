// A worker's part of the checkpoint, into its device.
#pragma once

#include "absl/status/statusor.h"
#include "common/base/ids.h"
#include "common/config/config.h"
#include "common/layout/experts_state.h"
#include "worker/model/weight_loader.h"
#include "worker/worker_device.h"
#include "worker/worker_plan.h"

namespace moebius {

// Loads what `rank` holds where each layer lies as `experts` says, or makes it
// up where the configuration says so.
absl::StatusOr<LoadStats> LoadPart(const Config& config, const WorkerPlan& plan,
                                   Rank rank, const ExpertsState& experts,
                                   WorkerDevice& device,
                                   const LoadProgress& progress);

}  // namespace moebius
