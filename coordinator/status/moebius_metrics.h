// Metrics that only this server has: of ranks, layouts and switches.
// Pure.
#pragma once

#include "coordinator/engine/engine.h"
#include "coordinator/status/front_metrics.h"
#include "coordinator/status/metrics_writer.h"
#include "coordinator/status/status_text.h"

namespace moebius {

void AddMoebiusMetrics(const EngineStatus& status, const ServerInfo& info,
                       const FrontMetrics::Snapshot& front, MetricsWriter& out);

}  // namespace moebius
