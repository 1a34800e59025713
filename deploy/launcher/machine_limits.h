// What the machine and the model allow, looked at before anything is started.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "absl/status/status.h"
#include "common/config/config.h"

namespace moebius {

// Memory that can still be had, and who says so.
struct FreeMemory {
  int64_t bytes = 0;
  std::string said_by;  // "MemAvailable", or the folder of a control group
};

// The least that /proc/meminfo and the limits of our control group and those
// above it leave. Nothing if neither says anything. `root`: "" but in tests.
std::optional<FreeMemory> ReadFreeMemory(const std::string& root);

// kInvalidArgument with the figures if the KV memory that the configuration
// asks for is more than there is. That of a GPU is for its workers to complain
// of. Pure.
absl::Status CheckKvMemory(const Config& config, const FreeMemory& free);

// kInvalidArgument with the figures if the configuration asks for longer
// sequences than the model was made for. A model that cannot be read is for
// others to complain of.
absl::Status CheckLength(const Config& config);

// kInvalidArgument with the layouts that there are if the configuration names
// one into which the model's heads do not divide. As above of a model that
// cannot be read, or has no layouts.
absl::Status CheckLayoutsOfModel(const Config& config);

}  // namespace moebius
