// The body of /admin/faults, asked and answered.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "common/faults/fault_table.h"

namespace moebius {

// {"arm": ["worker.pull@1=crash#3", ...]}, at most FaultTable::kMaxArmed.
// kInvalidArgument says what is wrong.
absl::StatusOr<std::vector<FaultSpec>> ParseFaultsBody(std::string_view body);

// {"armed":[{"fault","reached","fired"}],"points":{NAME: times reached}}
std::string FaultsJson(const FaultTable& faults);

}  // namespace moebius
