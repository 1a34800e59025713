// The group's private directory: sockets and the effective configuration, mode
// 0700, gone with the group.
#pragma once

#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/unique_fd.h"

namespace moebius {

// PrivateDir
//
// `BASE/moebius-<pid>-<random>`, owned by us. A lock (flock on `lock` in it) is
// held as long as its launcher lives, whatever it dies of: that is how a
// directory left by a dead launcher is told from one in use.
//
// Owns: the directory and all that is in it; both go with the object.
// Threading: thread-compatible.
class PrivateDir {
 public:
  // Makes one below `base`. First removes directories there that dead
  // launchers of this user left behind.
  // Errors: kInvalidArgument when the path would be too long for the socket
  // names in it; kPermissionDenied, kNotFound, ... from the system.
  static absl::StatusOr<PrivateDir> Create(const std::string& base);

  // $XDG_RUNTIME_DIR where it is a directory that we may write to and short
  // enough for socket names, /tmp otherwise.
  static std::string DefaultBase();

  PrivateDir(PrivateDir&& other) noexcept;
  PrivateDir& operator=(PrivateDir&&) = delete;
  ~PrivateDir();

  const std::string& path() const { return path_; }

  // Writes `text` to the file `name` in it, mode 0600.
  absl::Status WriteFile(const std::string& name,
                         const std::string& text) const;

 private:
  PrivateDir(std::string path, UniqueFd lock);
  std::string path_;  // empty: moved from
  UniqueFd lock_;
};

// Removes the directories of dead launchers of this user below `base`; returns
// how many. Looks at no more than kMaxStaleEntries names.
inline constexpr int kMaxStaleEntries = 100000;
int RemoveStaleDirs(const std::string& base);

}  // namespace moebius
