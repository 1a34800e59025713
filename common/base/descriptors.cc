#include "common/base/descriptors.h"

#include <sys/resource.h>

#include <algorithm>
#include <filesystem>
#include <iterator>
#include <limits>
#include <system_error>

namespace moebius {
namespace {

int ToInt(rlim_t limit) {
  return static_cast<int>(
      std::min<rlim_t>(limit, std::numeric_limits<int>::max()));
}

}  // namespace

int RaiseDescriptorLimit(int wanted) {
  rlimit limit{};
  if (getrlimit(RLIMIT_NOFILE, &limit) != 0) return wanted;
  const rlim_t before = limit.rlim_cur;
  if (before >= static_cast<rlim_t>(wanted)) return ToInt(before);
  limit.rlim_cur = std::min(static_cast<rlim_t>(wanted), limit.rlim_max);
  if (setrlimit(RLIMIT_NOFILE, &limit) != 0) return ToInt(before);
  return ToInt(limit.rlim_cur);
}

int NumOpenDescriptors() {
  std::error_code error;
  const std::filesystem::directory_iterator open("/proc/self/fd", error);
  if (error) return 0;
  // The iterator's own is among them.
  return static_cast<int>(std::distance(begin(open), end(open))) - 1;
}

}  // namespace moebius
