#include "tests/simulation/disk.h"

#include <algorithm>
#include <cerrno>
#include <utility>

#include "common/fault_point.h"
#include "common/status_macros.h"

namespace moebius::simulation {

class SimDisk::File final : public DiskFile {
 public:
  File(SimDisk* disk, std::shared_ptr<std::string> bytes)
      : disk_(disk), bytes_(std::move(bytes)) {}

  absl::Status Append(absl::Span<const char> bytes) override {
    const auto part = [&] {
      const auto count = static_cast<size_t>(
          disk_->rng_.Between(0, static_cast<int64_t>(bytes.size())));
      bytes_->append(bytes.data(), count);
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
    bytes_->append(bytes.data(), bytes.size());
    return absl::OkStatus();
  }
  absl::Status Sync() override { return disk_->Meet(FaultId::kJournalSync); }

 private:
  SimDisk* const disk_;
  const std::shared_ptr<std::string> bytes_;
};

absl::Status SimDisk::Meet(FaultId id) {
  RETURN_IF_ERROR(FaultPoint(id));
  if (world_->now_us() >= failing_until_us_) return absl::OkStatus();
  world_->CountFault("disk error");
  return InjectedError(id, ENOSPC);
}

void SimDisk::CutNewest(size_t count) {
  if (files_.empty()) return;
  std::string& bytes = *files_.rbegin()->second;
  bytes.resize(bytes.size() - std::min(count, bytes.size()));
}

absl::Status SimDisk::Lock() {
  if (locked_) return absl::FailedPreconditionError("another has it");
  locked_ = true;
  return absl::OkStatus();
}

absl::StatusOr<std::vector<std::string>> SimDisk::List() {
  std::vector<std::string> names;
  for (const auto& [name, bytes] : files_) names.push_back(name);
  return names;
}

absl::StatusOr<std::string> SimDisk::Read(const std::string& name,
                                          uint64_t max_bytes) {
  const auto found = files_.find(name);
  if (found == files_.end()) return absl::NotFoundError(name.c_str());
  if (found->second->size() > max_bytes) {
    return absl::ResourceExhaustedError(name.c_str());
  }
  return *found->second;
}

absl::StatusOr<std::unique_ptr<DiskFile>> SimDisk::Create(
    const std::string& name) {
  auto bytes = std::make_shared<std::string>();
  files_[name] = bytes;
  return std::make_unique<File>(this, std::move(bytes));
}

absl::Status SimDisk::Rename(const std::string& from, const std::string& to) {
  const auto found = files_.find(from);
  if (found == files_.end()) return absl::NotFoundError(from.c_str());
  files_[to] = found->second;
  files_.erase(from);
  return absl::OkStatus();
}

absl::Status SimDisk::Remove(const std::string& name) {
  files_.erase(name);
  return absl::OkStatus();
}

absl::Status SimDisk::SyncNames() { return Meet(FaultId::kJournalSync); }

}  // namespace moebius::simulation
