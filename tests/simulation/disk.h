// The coordinator's disk.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "coordinator/journal/disk.h"
#include "tests/simulation/rng.h"
#include "tests/simulation/world.h"

namespace moebius::simulation {

// SimDisk
//
// Outlives the coordinators that use it. Each write and sync is a fault point:
// what happens there may leave any part of the bytes behind, and a writer that
// dies leaves all that it wrote before.
class SimDisk final : public Disk {
 public:
  SimDisk(World* world, Rng rng) : world_(world), rng_(rng) {}

  // Nobody has it any more.
  void Unlock() { locked_ = false; }
  // Writes and syncs fail until then.
  void FailUntil(int64_t until_us) { failing_until_us_ = until_us; }

  // A planted bug: the last bytes of the file with the highest name are gone.
  void CutNewest(size_t count);

  absl::Status Lock() override;
  absl::StatusOr<std::vector<std::string>> List() override;
  absl::StatusOr<std::string> Read(const std::string& name,
                                   uint64_t max_bytes) override;
  absl::StatusOr<std::unique_ptr<DiskFile>> Create(
      const std::string& name) override;
  absl::Status Rename(const std::string& from, const std::string& to) override;
  absl::Status Remove(const std::string& name) override;
  absl::Status SyncNames() override;
  std::string Describe(const std::string& name) const override { return name; }

 private:
  class File;
  // The fault point, and the disk's own trouble.
  absl::Status Meet(FaultId id);

  World* const world_;
  Rng rng_;
  bool locked_ = false;
  int64_t failing_until_us_ = 0;
  std::map<std::string, std::shared_ptr<std::string>> files_;
};

}  // namespace moebius::simulation
