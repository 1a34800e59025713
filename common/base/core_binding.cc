#include "common/base/core_binding.h"

#include <cstddef>
#include <cstdint>

#include "common/base/check.h"

namespace moebius {

std::optional<cpu_set_t> CoreShare(const cpu_set_t& allowed, int share,
                                   int num_shares) {
  CHECK(0 <= share && share < num_shares);
  const int64_t num_cpus = CPU_COUNT(&allowed);
  if (num_cpus < num_shares) return std::nullopt;
  const int64_t begin = num_cpus * share / num_shares;
  const int64_t end = num_cpus * (share + 1) / num_shares;
  cpu_set_t cpus;
  CPU_ZERO(&cpus);
  int64_t seen = 0;
  for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
    if (!CPU_ISSET(cpu, &allowed)) continue;
    if (begin <= seen && seen < end) CPU_SET(cpu, &cpus);
    ++seen;
  }
  return cpus;
}

CoreBinding::CoreBinding(const std::vector<pthread_t>& threads, int first_share,
                         int num_shares) {
  before_.reserve(threads.size());
  for (size_t i = 0; i < threads.size(); ++i) {
    cpu_set_t allowed;
    if (pthread_getaffinity_np(threads[i], sizeof(allowed), &allowed) != 0) {
      continue;
    }
    const std::optional<cpu_set_t> own =
        CoreShare(allowed, first_share + static_cast<int>(i), num_shares);
    if (own.has_value() &&
        pthread_setaffinity_np(threads[i], sizeof(*own), &*own) == 0) {
      before_.emplace_back(threads[i], allowed);
    }
  }
}

CoreBinding::~CoreBinding() {
  for (const auto& [thread, allowed] : before_) {
    pthread_setaffinity_np(thread, sizeof(allowed), &allowed);
  }
}

}  // namespace moebius
