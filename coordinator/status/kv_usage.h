// How full the KV pools are. Pure.
#pragma once

#include "coordinator/engine/engine.h"

namespace moebius {

// The share of the KV pools that is in use, 0 to 1, by all ranks together.
double KvUsage(const EngineStatus& status);

}  // namespace moebius
