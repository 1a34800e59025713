// The group's private directory: sockets and the effective configuration, mode
// 0700, gone with the group.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/base/unique_fd.h"

namespace moebius {

// PrivateDir
//
// `BASE/moebius-<pid>-<random>`, owned by us. A lock (flock on `lock` in it) is
// held as long as its launcher runs, whatever it dies of: that is how a
// directory left by a dead launcher is told from one in use.
//
// Owns: the directory and all that is in it; both go with the object.
// Threading: thread-compatible.
class PrivateDir {
 public:
  // Makes one below `base`. First removes directories there that dead
  // launchers of this user left behind.
  // Errors: kInvalidArgument when the path would be too long for the socket
  // names in it; kPermissionDenied, kNotFound, ... from the system. They say
  // how to give another base.
  static absl::StatusOr<PrivateDir> Create(const std::string& base);

  // The first of $XDG_RUNTIME_DIR and $TMPDIR that is a directory which we may
  // write to and short enough for socket names, /tmp otherwise.
  static std::string DefaultBase();

  PrivateDir(PrivateDir&& other) noexcept;
  PrivateDir& operator=(PrivateDir&&) = delete;
  ~PrivateDir();

  const std::string& path() const { return path_; }

  // Makes the directory, its lock and the files of WriteFile() again as far as
  // somebody has removed them: cleaners of old files, a log-out. Returns their
  // names, none if all are there.
  absl::StatusOr<std::vector<std::string>> Restore();

  // Writes `text` to the file `name` in it, mode 0600.
  absl::Status WriteFile(const std::string& name, const std::string& text);

 private:
  PrivateDir(std::string path, UniqueFd lock);
  absl::Status TakeLock();
  absl::Status Put(const std::string& name, const std::string& text) const;

  std::string path_;  // empty: moved from
  UniqueFd lock_;
  std::map<std::string, std::string> files_;
};

// Removes the directories of dead launchers of this user below `base`; returns
// how many. Looks at no more than kMaxStaleEntries names.
inline constexpr int kMaxStaleEntries = 100000;
int RemoveStaleDirs(const std::string& base);

}  // namespace moebius
