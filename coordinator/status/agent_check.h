// What HAProxy's agent-check is told. Pure.
#pragma once

#include <string>

#include "coordinator/engine/engine.h"
#include "coordinator/status/status_text.h"

namespace moebius {

// One line (HAProxy's configuration manual, "agent-check"): "drain" while the
// group drains, "down#REASON" while it takes no requests, else
// "up ready WEIGHT%". The weight is what is left of the limit that is nearest,
// of sequences, queue and KV, half of it while a switch is prepared or copied,
// and at least 1: 0 would be a drain.
std::string AgentLine(const EngineStatus& status, const ServerInfo& info);

}  // namespace moebius
