// What a system call that has just failed says, as a status.
#pragma once

#include <cerrno>
#include <string_view>

#include "absl/status/status.h"
#include "common/base/cat.h"

namespace moebius {

// "WHAT: the system's words for errno", with the code that fits (ENOENT is
// kNotFound; ENOMEM, ENOSPC and EMFILE are kResourceExhausted).
// REQUIRES: nothing between the failed call and this one sets errno.
inline absl::Status ErrnoStatus(std::string_view what) {
  return absl::ErrnoToStatus(errno, AbslView(what));
}

}  // namespace moebius
