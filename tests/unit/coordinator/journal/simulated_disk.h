// A disk in memory that fails in the ways disks do, by a seed.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <random>
#include <string>
#include <vector>

#include "coordinator/journal/disk.h"

namespace moebius {

// SimulatedDisk
//
// Counts the calls of Disk and DiskFile, Describe excepted, from 0. Faults:
//
//   CrashAt(n)   call n is done, not done, or (a write) done in part; nothing
//                works from then on until Restart().
//   FailFrom(n)  calls from n on fail, so many or until StopFailing(), each
//                done, not done or done in part. List, Read and Lock are
//                spared: what is on this disk can be read.
//   capacity     a write that finds no room is done as far as there is some.
//   removals     fail, and are not done, as long as they are to.
//
// Restart(false) is a new process: what was done stays. Restart(true) is a loss
// of power: of what was not synced, any blocks of a file and any changes of
// names may be lost; lost blocks before ones that were kept, or before the end
// of the file, are zeros. A Sync that failed has dropped what it was to sync,
// and later ones succeed without it.
//
// Equal seeds and equal calls give equal disks.
// Threading: thread-compatible.
class SimulatedDisk final : public Disk {
 public:
  static constexpr uint64_t kBlockBytes = 64;  // small, to tear small files

  explicit SimulatedDisk(uint32_t seed);
  ~SimulatedDisk() override;

  void CrashAt(uint64_t call) { crash_at_ = call; }
  void FailFrom(uint64_t call, absl::Status error,
                uint64_t num_calls = ~uint64_t{0});
  void StopFailing() { fail_from_.reset(); }
  void set_capacity_bytes(uint64_t bytes) { capacity_bytes_ = bytes; }
  void set_removals_fail(bool fail) { removals_fail_ = fail; }
  void Restart(bool power_lost);

  uint64_t calls() const { return calls_; }
  bool crashed() const { return crashed_; }

  // The disk's contents, past all counting and failing.
  std::vector<std::string> names() const;
  // REQUIRES: the file exists.
  std::string& contents(const std::string& name);
  void Put(const std::string& name, std::string contents);

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
  struct Inode;
  class File;
  using Names = std::map<std::string, std::shared_ptr<Inode>>;
  // A change of names that a loss of power may undo.
  struct Change {
    std::string name;
    std::shared_ptr<Inode> inode;  // null: removed
    std::string gone;              // of a rename: its old name
  };
  // What becomes of a call.
  struct Fate {
    bool done = true;
    bool partly = false;
    absl::Status status;
  };

  bool Chance(int one_in) { return random_() % one_in == 0; }
  Fate Next(bool can_fail);
  void Apply(const Change& change, Names& names) const;
  void Do(Change change);
  uint64_t used_bytes() const;

  std::mt19937 random_;
  uint64_t calls_ = 0;
  std::optional<uint64_t> crash_at_;
  std::optional<uint64_t> fail_from_;
  uint64_t num_failing_ = 0;
  absl::Status error_;
  uint64_t capacity_bytes_ = uint64_t{1} << 40;
  bool removals_fail_ = false;
  bool crashed_ = false;
  uint64_t start_ = 0;   // files of earlier ones are closed
  bool locked_ = false;  // since this start

  Names names_;                  // as processes see them
  Names durable_;                // as of the last SyncNames
  std::vector<Change> changes_;  // since
};

}  // namespace moebius
