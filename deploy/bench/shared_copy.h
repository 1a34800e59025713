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
// It cannot be broken off: give it no more than SharedCopySample().
// REQUIRES: size_bytes > 0, num_threads at least 1.
absl::StatusOr<double> SharedCopyBytesPerSecond(uint64_t size_bytes,
                                                int num_threads);

// How many bytes stand for a copy of `size_bytes` by `num_threads`: all, or as
// many for each thread as are far more than its caches hold. A copy of more
// would take longer and be as fast.
inline constexpr uint64_t kSharedCopySampleBytes = uint64_t{128} << 20;
uint64_t SharedCopySample(uint64_t size_bytes, int num_threads);

}  // namespace moebius
