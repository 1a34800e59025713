#include "coordinator/status/metrics_text.h"

#include "coordinator/status/moebius_metrics.h"
#include "coordinator/status/vllm_metrics.h"

namespace moebius {

std::string MetricsText(const EngineStatus& status, const ServerInfo& info,
                        const FrontMetrics::Snapshot& front,
                        MetricsFormat format) {
  MetricsWriter out(format);
  AddVllmMetrics(status, info, front, out);
  AddMoebiusMetrics(status, info, front, out);
  return out.Finish();
}

}  // namespace moebius
