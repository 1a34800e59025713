// The metrics of a group. Pure.
#pragma once

#include <string>

#include "coordinator/engine/engine.h"
#include "coordinator/status/front_metrics.h"
#include "coordinator/status/metrics_writer.h"
#include "coordinator/status/status_text.h"

namespace moebius {

// Under vLLM's names what routers and dashboards read of a server, each one
// series of the group; under names that begin with "moebius:" what only this
// server has, ranks and switches among it. docs/operators.md lists both.
std::string MetricsText(const EngineStatus& status, const ServerInfo& info,
                        const FrontMetrics::Snapshot& front,
                        MetricsFormat format);

}  // namespace moebius
