// What a worker is to be, from its configuration and its model's files.
#pragma once

#include <cstdint>

#include "absl/status/statusor.h"
#include "common/config/config.h"
#include "worker/memory/worker_memory.h"
#include "worker/model/families/families.h"
#include "worker/model/kv_layout.h"
#include "worker/model/model_shape.h"
#include "worker/model/tensor_names.h"

namespace moebius {

class WorkerPlatform;

// The same on every rank of a group.
struct WorkerPlan {
  ModelShape shape;
  TensorNames names = nullptr;
  AdaptTensors adapt = nullptr;
  uint64_t model_digest = 0;  // workers of one model have it in common
  int context_length = 0;
  KvLayout kv;
  uint32_t num_pages = 0;
  MemoryGeometry geometry;
};

// Reads config.json. Errors are of the input: a successor would meet them, too.
absl::StatusOr<WorkerPlan> PlanWorker(const Config& config,
                                      const WorkerPlatform& platform);

}  // namespace moebius
