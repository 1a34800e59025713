// What a worker has of its device.
#pragma once

#include <cstdint>
#include <memory>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/layout/experts_state.h"
#include "kernels/thread_pool.h"
#include "worker/bench/device_probe.h"
#include "worker/model/weight_sink.h"
#include "worker/peers/barrier.h"
#include "worker/peers/group_fence.h"
#include "worker/steps/device_slots.h"
#include "worker/steps/step_engine.h"
#include "worker/switch/mover.h"
#include "worker/switch/weight_check.h"

namespace moebius {

// WorkerDevice
//
// The parts that the rest of a worker reaches through interfaces, made over its
// memory in one place (worker_device_cpu.h). Only what is behind them knows
// which device it is.
// Threading: the worker's thread.
class WorkerDevice {
 public:
  virtual ~WorkerDevice() = default;

  virtual GroupFence& fence() = 0;
  // Where the host meets the other ranks, between the moves of a switch.
  virtual Barrier& barrier() = 0;
  virtual SlotTables& slots() = 0;
  virtual StepEngine& engine() = 0;
  virtual Mover& mover() = 0;
  // Threads of the host that copy in a switch, beside the caller's; may be
  // null.
  virtual ThreadPool* copy_threads() = 0;
  virtual WeightCheck& check() = 0;
  // Peers' memories may have been replaced, and are mapped: what depends on
  // them is made anew. REQUIRES: nothing is under way.
  virtual absl::Status FollowPeers() = 0;
  // Into our regions.
  virtual std::unique_ptr<WeightSink> MakeSink() = 0;
  // WeightChecksum() of our part, now.
  virtual uint64_t Checksum(const ExpertsState& experts) = 0;
  // For a benchmark, which holds it no longer than this.
  virtual absl::StatusOr<std::unique_ptr<DeviceProbe>> MakeProbe() = 0;
};

}  // namespace moebius
