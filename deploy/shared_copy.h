// How fast this machine copies between two shared mappings: what the copies of
// a switch are measured against.
#pragma once

#include <cstdint>

#include "absl/status/statusor.h"

namespace moebius {

// Copies `size_bytes` with memcpy from one memfd mapping to another, by
// `num_threads` threads that start together and take a share each, on cores of
// their own where there are enough; in bytes a second. The mappings are new and
// their pages touched before, so the copy finds in the caches what a switch
// does: copied again and again, a few megabytes would be faster than memory.
// REQUIRES: size_bytes > 0, num_threads at least 1.
absl::StatusOr<double> SharedCopyBytesPerSecond(uint64_t size_bytes,
                                                int num_threads);

}  // namespace moebius
