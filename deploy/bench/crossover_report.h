// What `bench throughput` and `bench rollout` say of the crossover.
#pragma once

#include <string>

#include "nlohmann/json.hpp"

namespace moebius {

// A table of the decode cases of `result` that both layouts have, and where EP
// begins to be faster, which it adds to `result`. "" where both have fewer than
// two.
std::string AddCrossover(nlohmann::json& result);

}  // namespace moebius
