// Disk on a directory of the file system.
#pragma once

#include <string>

#include "common/base/unique_fd.h"
#include "coordinator/journal/disk.h"

namespace moebius {

// PosixDisk
//
// Files have mode 0600. The lock is a flock on the directory: it ends with the
// process, whatever that dies of, and nobody can remove it. A directory that
// somebody removes is made again when the next file is.
class PosixDisk final : public Disk {
 public:
  static constexpr size_t kMaxNames = 100000;

  // Opens the directory, and makes it (mode 0700, not its parents) if it is not
  // there. kFailedPrecondition when it is somebody else's, or others may look
  // into it.
  static absl::StatusOr<std::unique_ptr<PosixDisk>> Open(
      const std::string& path);

  absl::Status Lock() override;
  absl::StatusOr<std::vector<std::string>> List() override;
  absl::StatusOr<std::string> Read(const std::string& name,
                                   uint64_t max_bytes) override;
  absl::StatusOr<std::unique_ptr<DiskFile>> Create(
      const std::string& name) override;
  absl::Status Rename(const std::string& from, const std::string& to) override;
  absl::Status Remove(const std::string& name) override;
  absl::Status SyncNames() override;
  std::string Describe(const std::string& name) const override;

 private:
  PosixDisk(std::string path, UniqueFd directory);
  static absl::StatusOr<UniqueFd> OpenDirectory(const std::string& path);
  absl::Status RestoreDirectory();
  absl::Status Error(const char* what, const std::string& name) const;

  const std::string path_;
  UniqueFd directory_;
  bool locked_ = false;
};

}  // namespace moebius
