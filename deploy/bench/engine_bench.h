// A group that is driven through its coordinator, without HTTP, by a benchmark
// in the coordinator's place.
#pragma once

#include <string>

#include "absl/status/statusor.h"
#include "common/config/config.h"
#include "nlohmann/json.hpp"

namespace moebius {

// A case of a specification: streams of so many tokens at once, "ep" or "tp".
nlohmann::json EngineCase(int streams, int prompt_tokens, int output_tokens,
                          const std::string& layout);

// Starts a group of its own, has it measure `spec`, and returns the result;
// coordinator/bench/throughput_bench.h says what both are. The group has room
// for `streams` sequences at once.
// Errors: what kept the group from starting; kInternal when it failed, with
// the reason on the console.
absl::StatusOr<nlohmann::json> RunEngineBench(Config config, int streams,
                                              const nlohmann::json& spec);

}  // namespace moebius
