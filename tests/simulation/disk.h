// The coordinator's disk.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/types/span.h"
#include "common/faults/fault_point.h"
#include "coordinator/journal/disk.h"
#include "tests/simulation/rng.h"
#include "tests/simulation/world.h"
#include "tests/unit/coordinator/journal/simulated_disk.h"

namespace moebius::simulation {

// SimDisk
//
// Outlives the coordinators that use it. Each write and sync is a fault point:
// what happens there may leave any part of the bytes behind. A writer that dies
// leaves all that it wrote before, a loss of power what it had synced.
class SimDisk final : public Disk {
 public:
  SimDisk(World* world, Rng rng)
      : world_(world), rng_(rng), disk_(static_cast<uint32_t>(rng_.Next())) {}

  // The coordinator that has it is gone, or the whole machine.
  void Restart(bool power_lost) { disk_.Restart(power_lost); }
  // Writes and syncs fail until then.
  void FailUntil(int64_t until_us) { failing_until_us_ = until_us; }

  // Is given what a file has on disk since the last time, with each sync.
  using SyncListener = std::function<void(absl::Span<const char> bytes)>;
  void SetSyncListener(SyncListener listener) {
    sync_listener_ = std::move(listener);
  }

  // A planted bug: the last bytes of the file with the highest name are gone.
  void CutNewest(size_t count);

  absl::Status Lock() override { return disk_.Lock(); }
  absl::StatusOr<std::vector<std::string>> List() override {
    return disk_.List();
  }
  absl::StatusOr<std::string> Read(const std::string& name,
                                   uint64_t max_bytes) override {
    return disk_.Read(name, max_bytes);
  }
  absl::StatusOr<std::unique_ptr<DiskFile>> Create(
      const std::string& name) override;
  absl::Status Rename(const std::string& from, const std::string& to) override {
    return disk_.Rename(from, to);
  }
  absl::Status Remove(const std::string& name) override {
    return disk_.Remove(name);
  }
  absl::Status SyncNames() override;
  std::string Describe(const std::string& name) const override {
    return disk_.Describe(name);
  }

 private:
  class File;
  // The fault point, and the disk's own trouble.
  absl::Status Meet(FaultId id);

  World* const world_;
  Rng rng_;
  int64_t failing_until_us_ = 0;
  SyncListener sync_listener_;
  SimulatedDisk disk_;
};

}  // namespace moebius::simulation
