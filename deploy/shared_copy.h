// How fast this machine copies between two shared mappings: what the copies of
// a switch are measured against.
#pragma once

#include <cstdint>

#include "absl/status/statusor.h"

namespace moebius {

// Copies `size_bytes` with memcpy from one memfd mapping to another, by
// `num_threads` threads that start together and take a share each, `repeats`
// times; returns the median, in bytes a second. Pages are touched before.
// REQUIRES: size_bytes > 0, num_threads and repeats at least 1.
absl::StatusOr<double> SharedCopyBytesPerSecond(uint64_t size_bytes,
                                                int num_threads, int repeats);

}  // namespace moebius
