// Small files, read as a whole.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"

namespace moebius {

// The bytes of the regular file `path`, whatever size the system says it has:
// those of /proc have 0.
//
// Errors begin with the path. kNotFound: there is no such file.
// kInvalidArgument: more than `max_bytes`, a directory or anything else that is
// no regular file, or one that we may not read. Others are the machine's.
absl::StatusOr<std::string> ReadFile(const std::string& path, size_t max_bytes);

// The same from an open descriptor, whose kind the caller has looked at; from
// where it stands. `name` is what errors begin with.
absl::StatusOr<std::string> ReadDescriptor(int fd, std::string_view name,
                                           size_t max_bytes);

}  // namespace moebius
