#include "tests/unit/coordinator/journal/simulated_disk.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/base/check.h"

namespace moebius {

struct SimulatedDisk::Inode {
  std::string bytes;
  uint64_t synced_bytes = 0;
  bool dropped = false;  // a Sync has failed: nothing more is synced, ever
};

class SimulatedDisk::File final : public DiskFile {
 public:
  File(SimulatedDisk* disk, std::shared_ptr<Inode> inode)
      : disk_(disk), inode_(std::move(inode)), start_(disk->start_) {}

  absl::Status Append(absl::Span<const char> bytes) override {
    if (start_ != disk_->start_) return absl::InternalError("closed");
    Fate fate = disk_->Next(/*can_fail=*/true);
    size_t size = fate.done ? bytes.size() : 0;
    if (fate.partly) size = disk_->random_() % (bytes.size() + 1);
    const uint64_t used = disk_->used_bytes();
    const uint64_t room =
        disk_->capacity_bytes_ - std::min(used, disk_->capacity_bytes_);
    if (size > room) {
      size = room;
      if (fate.status.ok()) {
        fate.status = absl::ResourceExhaustedError("simulated: no space left");
      }
    }
    inode_->bytes.append(bytes.data(), size);
    return fate.status;
  }

  absl::Status Sync() override {
    if (start_ != disk_->start_) return absl::InternalError("closed");
    const Fate fate = disk_->Next(/*can_fail=*/true);
    if (!fate.status.ok() && !disk_->crashed_) inode_->dropped = true;
    if (fate.done && !inode_->dropped) {
      inode_->synced_bytes = inode_->bytes.size();
    }
    return fate.status;
  }

 private:
  SimulatedDisk* const disk_;
  const std::shared_ptr<Inode> inode_;
  const uint64_t start_;
};

SimulatedDisk::SimulatedDisk(uint32_t seed) : random_(seed) {}
SimulatedDisk::~SimulatedDisk() = default;

void SimulatedDisk::FailFrom(uint64_t call, absl::Status error,
                             uint64_t num_calls) {
  fail_from_ = call;
  num_failing_ = num_calls;
  error_ = std::move(error);
}

// Counts a call and says what becomes of it.
SimulatedDisk::Fate SimulatedDisk::Next(bool can_fail) {
  const absl::Status off = absl::AbortedError("simulated: crashed");
  if (crashed_) return {false, false, off};
  const uint64_t call = calls_++;
  const bool crash = crash_at_ == call;
  const bool fail = can_fail && fail_from_.has_value() && call >= *fail_from_ &&
                    call - *fail_from_ < num_failing_;
  if (!crash && !fail) return {};
  crashed_ = crash;
  Fate fate{Chance(3), false, crash ? off : error_};
  fate.partly = !fate.done && Chance(2);
  return fate;
}

uint64_t SimulatedDisk::used_bytes() const {
  uint64_t bytes = 0;
  for (const auto& [name, inode] : names_) bytes += inode->bytes.size();
  return bytes;
}

void SimulatedDisk::Apply(const Change& change, Names& names) const {
  if (!change.gone.empty()) names.erase(change.gone);
  if (change.inode == nullptr) {
    names.erase(change.name);
  } else {
    names[change.name] = change.inode;
  }
}

void SimulatedDisk::Do(Change change) {
  Apply(change, names_);
  changes_.push_back(std::move(change));
}

void SimulatedDisk::Restart(bool power_lost) {
  ++start_;
  crashed_ = locked_ = false;
  crash_at_.reset();
  fail_from_.reset();
  if (!power_lost) return;
  for (const Change& change : std::exchange(changes_, {})) {
    if (!Chance(2)) Apply(change, durable_);
  }
  names_ = durable_;
  for (auto& [name, inode] : names_) {
    std::string& bytes = inode->bytes;
    const uint64_t synced = inode->synced_bytes;
    if (bytes.size() == synced) continue;
    if (Chance(2)) bytes.resize(synced + random_() % (bytes.size() - synced));
    const int one_in = 1 + random_() % 4;  // blocks that are lost
    for (uint64_t at = synced; at < bytes.size();) {
      const uint64_t end = std::min<uint64_t>(
          (at / kBlockBytes + 1) * kBlockBytes, bytes.size());
      if (Chance(one_in)) std::fill(&bytes[at], &bytes[end - 1] + 1, '\0');
      at = end;
    }
    inode->synced_bytes = bytes.size();
    inode->dropped = false;
  }
}

std::vector<std::string> SimulatedDisk::names() const {
  std::vector<std::string> names;
  for (const auto& [name, inode] : names_) names.push_back(name);
  return names;
}

std::string& SimulatedDisk::contents(const std::string& name) {
  const auto found = names_.find(name);
  CHECK(found != names_.end());
  return found->second->bytes;
}

void SimulatedDisk::Put(const std::string& name, std::string contents) {
  auto inode = std::make_shared<Inode>();
  inode->bytes = std::move(contents);
  inode->synced_bytes = inode->bytes.size();
  names_[name] = durable_[name] = inode;
}

absl::Status SimulatedDisk::Lock() {
  const Fate fate = Next(/*can_fail=*/false);
  if (!fate.status.ok()) return fate.status;
  if (std::exchange(locked_, true)) {
    return absl::FailedPreconditionError("simulated: locked");
  }
  return absl::OkStatus();
}

absl::StatusOr<std::vector<std::string>> SimulatedDisk::List() {
  const Fate fate = Next(/*can_fail=*/false);
  if (!fate.status.ok()) return fate.status;
  std::vector<std::string> list = names();
  std::shuffle(list.begin(), list.end(), random_);
  return list;
}

absl::StatusOr<std::string> SimulatedDisk::Read(const std::string& name,
                                                uint64_t max_bytes) {
  const Fate fate = Next(/*can_fail=*/false);
  if (!fate.status.ok()) return fate.status;
  const auto found = names_.find(name);
  if (found == names_.end()) return absl::NotFoundError(Describe(name));
  if (found->second->bytes.size() > max_bytes) {
    return absl::ResourceExhaustedError(Describe(name));
  }
  return found->second->bytes;
}

absl::StatusOr<std::unique_ptr<DiskFile>> SimulatedDisk::Create(
    const std::string& name) {
  const Fate fate = Next(/*can_fail=*/true);
  auto inode = std::make_shared<Inode>();
  if (fate.done) Do({name, inode, ""});
  if (!fate.status.ok()) return fate.status;
  return std::make_unique<File>(this, std::move(inode));
}

absl::Status SimulatedDisk::Rename(const std::string& from,
                                   const std::string& to) {
  const Fate fate = Next(/*can_fail=*/true);
  const auto found = names_.find(from);
  if (found == names_.end()) {
    return fate.status.ok() ? absl::NotFoundError(Describe(from)) : fate.status;
  }
  if (fate.done) Do({to, found->second, from});
  return fate.status;
}

absl::Status SimulatedDisk::Remove(const std::string& name) {
  const Fate fate = Next(/*can_fail=*/true);
  if (!names_.contains(name)) {
    return fate.status.ok() ? absl::NotFoundError(Describe(name)) : fate.status;
  }
  if (removals_fail_ && fate.status.ok()) {
    return absl::PermissionDeniedError("simulated: not to be removed");
  }
  if (fate.done) Do({name, nullptr, ""});
  return fate.status;
}

absl::Status SimulatedDisk::SyncNames() {
  const Fate fate = Next(/*can_fail=*/true);
  if (fate.done) {
    durable_ = names_;
    changes_.clear();
  }
  return fate.status;
}

std::string SimulatedDisk::Describe(const std::string& name) const {
  return absl::StrCat("simulated/", name);
}

}  // namespace moebius
