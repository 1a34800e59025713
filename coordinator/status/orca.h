// The load of the group as a header of answers (ORCA, as vLLM and Triton give
// it and gateways read it). Pure.
#pragma once

#include <string>
#include <string_view>

#include "common/config/config.h"
#include "coordinator/engine/engine.h"

namespace moebius {

inline constexpr char kOrcaRequestHeader[] = "endpoint-load-metrics-format";
inline constexpr char kOrcaHeader[] = "endpoint-load-metrics";

// "text" or "json": the format that is `asked` for, in any case, or else what
// the configuration says; "": no header.
std::string_view OrcaFormat(LoadHeader configured, std::string_view asked);

// The header's value in one of these formats.
std::string OrcaValue(std::string_view format, const EngineStatus& status);

}  // namespace moebius
