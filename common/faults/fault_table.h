// The faults that are armed in a group, in memory that its processes share: a
// file in the group's private directory. Counts outlive a process that a fault
// kills.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/faults/fault_point.h"

namespace moebius {

inline constexpr std::string_view kFaultTableName = "faults";

struct ArmedFault {
  FaultSpec spec;
  uint32_t reached = 0;  // since it was armed
  uint32_t fired = 0;
};

// FaultTable
//
// Threading: thread-safe, between processes too, but for Arm and DisarmAll,
// which are the business of one thread in one process (before the others
// start, the launcher; then the coordinator, for its admin API).
// Bounds: kMaxArmed faults.
class FaultTable {
 public:
  static constexpr int kMaxArmed = 64;

  // Makes `directory`/faults, or maps the one that is there. The directory is
  // the group's private one.
  static absl::StatusOr<std::unique_ptr<FaultTable>> Create(
      const std::string& directory);
  static absl::StatusOr<std::unique_ptr<FaultTable>> Open(
      const std::string& directory);
  ~FaultTable();
  FaultTable(const FaultTable&) = delete;
  FaultTable& operator=(const FaultTable&) = delete;

  // kResourceExhausted when kMaxArmed are armed and not used up.
  absl::Status Arm(const FaultSpec& spec);
  void DisarmAll();

  std::vector<ArmedFault> armed() const;
  // How often any process has reached the point.
  uint64_t reached(FaultId id) const;

  // Counts that `process` is at the point, and returns what is to be done
  // there: the first armed fault whose turn it is, or one of kNone.
  FaultSpec Reach(FaultId id, int process);

 private:
  struct Block;
  explicit FaultTable(Block* block) : block_(block) {}
  static absl::StatusOr<std::unique_ptr<FaultTable>> Map(
      const std::string& directory, int flags);
  Block* block_;
};

// Carries out the faults of a table in the process that installs it.
class TableFaultHandler final : public FaultHandler {
 public:
  // `table` outlives this. `process`: a rank, or kCoordinatorRank.
  TableFaultHandler(FaultTable* table, int process)
      : table_(table), process_(process) {}
  absl::Status OnFaultPoint(FaultId id) override;

 private:
  FaultTable* table_;
  int process_;
};

}  // namespace moebius
