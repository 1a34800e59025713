// What the journal asks of a file system: one directory of files that only
// grow. Small, so that tests and simulations can stand in for it.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"

namespace moebius {

// A file being written. Closed when destroyed.
class DiskFile {
 public:
  virtual ~DiskFile() = default;

  // Adds `bytes` at the end, all of them. On error any number of them may be
  // there. They survive the end of the process, not a loss of power.
  virtual absl::Status Append(absl::Span<const char> bytes) = 0;

  // What was appended survives a loss of power. On error nothing is known of
  // what was appended since the last success, and never will be: the system
  // may have dropped it, and then says yes to the next Sync.
  virtual absl::Status Sync() = 0;

  // False when somebody has removed the file: what is written to it goes with
  // us.
  virtual bool Present() const { return true; }
};

// Disk
//
// Names are plain file names. Errors are the system's, and name the file.
// After an error of Rename or Remove it may have been done or not.
// Threading: thread-compatible.
class Disk {
 public:
  virtual ~Disk() = default;

  // Takes the directory for this Disk, until it is destroyed or the process
  // ends. kFailedPrecondition when another has it.
  virtual absl::Status Lock() = 0;

  virtual absl::StatusOr<std::vector<std::string>> List() = 0;

  // kResourceExhausted when the file is larger than `max_bytes`.
  virtual absl::StatusOr<std::string> Read(const std::string& name,
                                           uint64_t max_bytes) = 0;

  // An empty file of that name, in place of one that may be there.
  virtual absl::StatusOr<std::unique_ptr<DiskFile>> Create(
      const std::string& name) = 0;

  // In place of a file `to` that may be there.
  virtual absl::Status Rename(const std::string& from,
                              const std::string& to) = 0;
  virtual absl::Status Remove(const std::string& name) = 0;

  // Names that were made, changed and removed survive a loss of power.
  virtual absl::Status SyncNames() = 0;

  // How messages call the file.
  virtual std::string Describe(const std::string& name) const = 0;
};

}  // namespace moebius
