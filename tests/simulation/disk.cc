#include "tests/simulation/disk.h"

#include <algorithm>
#include <cerrno>
#include <utility>

#include "common/base/status_macros.h"
#include "common/faults/fault_point.h"

namespace moebius::simulation {

class SimDisk::File final : public DiskFile {
 public:
  File(SimDisk* disk, std::unique_ptr<DiskFile> file)
      : disk_(disk), file_(std::move(file)) {}

  absl::Status Append(absl::Span<const char> bytes) override {
    const auto part = [&] {
      const auto count = static_cast<size_t>(
          disk_->rng_.Between(0, static_cast<int64_t>(bytes.size())));
      file_->Append(bytes.first(count)).IgnoreError();
    };
    absl::Status status;
    try {
      status = disk_->Meet(FaultId::kJournalWrite);
    } catch (...) {
      part();
      throw;
    }
    if (!status.ok()) {
      part();
      return status;
    }
    if (disk_->sync_listener_) unsynced_.append(bytes.data(), bytes.size());
    return file_->Append(bytes);
  }
  absl::Status Sync() override {
    RETURN_IF_ERROR(disk_->Meet(FaultId::kJournalSync));
    RETURN_IF_ERROR(file_->Sync());
    if (disk_->sync_listener_) {
      disk_->sync_listener_(std::exchange(unsynced_, ""));
    }
    return absl::OkStatus();
  }

 private:
  SimDisk* const disk_;
  const std::unique_ptr<DiskFile> file_;
  std::string unsynced_;  // for the listener
};

absl::Status SimDisk::Meet(FaultId id) {
  RETURN_IF_ERROR(FaultPoint(id));
  if (world_->now_us() >= failing_until_us_) return absl::OkStatus();
  world_->CountFault("disk error");
  return InjectedError(id, ENOSPC);
}

void SimDisk::CutNewest(size_t count) {
  const std::vector<std::string> names = disk_.names();
  if (names.empty()) return;
  std::string& bytes = disk_.contents(names.back());
  bytes.resize(bytes.size() - std::min(count, bytes.size()));
}

absl::StatusOr<std::unique_ptr<DiskFile>> SimDisk::Create(
    const std::string& name) {
  ASSIGN_OR_RETURN(std::unique_ptr<DiskFile> file, disk_.Create(name));
  return std::make_unique<File>(this, std::move(file));
}

absl::Status SimDisk::SyncNames() {
  RETURN_IF_ERROR(Meet(FaultId::kJournalSync));
  return disk_.SyncNames();
}

}  // namespace moebius::simulation
