#include "coordinator/status/metrics_text.h"

#include "coordinator/status/moebius_metrics.h"
#include "coordinator/status/vllm_metrics.h"

namespace moebius {

double KvUsage(const EngineStatus& status) {
  uint64_t total = 0, free = 0;
  for (const WorkerStatus& worker : status.workers) {
    total += worker.pages_total;
    free += worker.pages_free;
  }
  return total == 0 ? 0.0 : static_cast<double>(total - free) / total;
}

std::string MetricsText(const EngineStatus& status, const ServerInfo& info,
                        const FrontMetrics::Snapshot& front,
                        MetricsFormat format) {
  MetricsWriter out(format);
  AddVllmMetrics(status, info, front, out);
  AddMoebiusMetrics(status, info, front, out);
  return out.Finish();
}

}  // namespace moebius
