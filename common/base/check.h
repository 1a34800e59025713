// CHECK: what we did wrong ends the process with its place and reason. Never
// for anything that a request, a file or a peer can carry.
#pragma once

#include <cstdio>
#include <cstdlib>

namespace moebius::internal {
[[noreturn]] inline void CheckFailed(const char* file, int line,
                                     const char* condition) {
  std::fprintf(stderr, "%s:%d: check failed: %s\n", file, line, condition);
  std::abort();
}
}  // namespace moebius::internal

#define CHECK(condition)                                                \
  do {                                                                  \
    if (!(condition)) [[unlikely]]                                      \
      ::moebius::internal::CheckFailed(__FILE__, __LINE__, #condition); \
  } while (false)
