// What `bench throughput` and `bench rollout` say of crossovers.
#pragma once

#include <string>

#include "nlohmann/json.hpp"

namespace moebius {

// A table of the decode cases of `result` that all its layouts have, and where,
// of two neighbours, the one with the smaller groups begins to be faster, which
// it adds to `result` as "crossovers", the widest groups first. "" where there
// are not two layouts, or fewer than two such cases. `num_ranks` have the
// layouts that `result` names.
std::string AddCrossovers(nlohmann::json& result, int num_ranks);

}  // namespace moebius
