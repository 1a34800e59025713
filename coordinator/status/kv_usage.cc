#include "coordinator/status/kv_usage.h"

namespace moebius {

double KvUsage(const EngineStatus& status) {
  uint64_t total = 0, free = 0;
  for (const WorkerStatus& worker : status.workers) {
    total += worker.pages_total;
    free += worker.pages_free;
  }
  return total == 0 ? 0.0 : static_cast<double>(total - free) / total;
}

}  // namespace moebius
