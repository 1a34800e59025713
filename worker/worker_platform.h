// The kind of device that a worker computes on, before there is memory on it.
#pragma once

#include <cstdint>
#include <memory>

#include "absl/status/statusor.h"
#include "common/base/ids.h"
#include "common/config/config.h"
#include "worker/bench/device_probe.h"
#include "worker/memory/region_maker.h"
#include "worker/memory/worker_memory.h"
#include "worker/model/model_shape.h"
#include "worker/worker.h"
#include "worker/worker_device.h"
#include "worker/worker_plan.h"

namespace moebius {

// WorkerPlatform
//
// Threading: the worker's thread.
class WorkerPlatform {
 public:
  virtual ~WorkerPlatform() = default;

  // Makes the regions.
  virtual const RegionMaker& maker() const = 0;
  // What all regions of a worker together may take; 0: as much as they want.
  virtual int64_t RegionBytes(const Config& config,
                              const ModelShape& shape) const = 0;
  // Spare slots where the configuration leaves their number open.
  virtual int SpareSlots(const ExpertShape& shape) const = 0;
  // Sizes the regions whose contents are the device's to say: exchange, and
  // what signals hold behind the words of barriers.
  virtual void PlanRegions(const Config& config, const ModelShape& shape,
                           MemoryGeometry& geometry) const = 0;
  // All parts over `memory`, whose peers are mapped. Fence, engine and check
  // are the host's where the host decides when things happen. All arguments
  // outlive it.
  virtual absl::StatusOr<std::unique_ptr<WorkerDevice>> MakeDevice(
      const Config& config, const WorkerPlan& plan, const WorkerMemory& memory,
      WorkerHost& host) const = 0;
  // Plain copies on the device of the rank, beside whatever runs there: what
  // those of a switch can be compared with.
  virtual absl::StatusOr<CopyRates> MeasureCopies() const = 0;
};

// What the configuration wants of those that this program is built with
// (worker_platforms_cpu.cc, worker_platforms_cuda.cc). kInvalidArgument or
// kNotFound when it cannot be had.
absl::StatusOr<std::unique_ptr<WorkerPlatform>> ChoosePlatform(
    const Config& config, Rank rank);

}  // namespace moebius
