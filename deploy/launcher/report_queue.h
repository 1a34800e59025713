// The way from the vault's thread to the launcher's.
#pragma once

#include <sys/eventfd.h>
#include <unistd.h>

#include <cstdint>
#include <map>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "common/base/check.h"
#include "common/base/unique_fd.h"
#include "deploy/launcher/vault.h"

namespace moebius {

// Reports of the vault's thread, for the main thread. Bounded by what the vault
// lets through: progress of a rank replaces the one before.
class ReportQueue {
 public:
  ReportQueue() : wake_(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) {
    CHECK(wake_.get() >= 0);
  }
  int fd() const { return wake_.get(); }

  void Push(const VaultReport& report) {
    {
      absl::MutexLock lock(&mutex_);
      latest_[{report.rank, report.type}] = report;
    }
    const uint64_t one = 1;
    // Fails only when it is readable already.
    [[maybe_unused]] const ssize_t n = write(wake_.get(), &one, sizeof one);
  }

  std::vector<VaultReport> TakeAll() {
    uint64_t count;
    [[maybe_unused]] const ssize_t n = read(wake_.get(), &count, sizeof count);
    std::vector<VaultReport> reports;
    absl::MutexLock lock(&mutex_);
    for (auto& [key, report] : latest_) reports.push_back(std::move(report));
    latest_.clear();
    return reports;
  }

 private:
  const UniqueFd wake_;
  absl::Mutex mutex_;
  std::map<std::pair<Rank, VaultMessageType>, VaultReport> latest_
      ABSL_GUARDED_BY(mutex_);
};

}  // namespace moebius
