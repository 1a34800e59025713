#include "coordinator/api/fault_routes.h"

#include "common/base/cat.h"
#include "common/base/status_macros.h"
#include "nlohmann/json.hpp"

namespace moebius {

absl::StatusOr<std::vector<FaultSpec>> ParseFaultsBody(std::string_view body) {
  const nlohmann::json json =
      nlohmann::json::parse(body, nullptr, /*allow_exceptions=*/false);
  const auto arm = json.is_object() ? json.find("arm") : json.end();
  if (!json.is_object() || arm == json.end() || !arm->is_array() ||
      arm->size() > FaultTable::kMaxArmed) {
    return absl::InvalidArgumentError(
        AbslView(Cat("the body is to be {\"arm\": [\"POINT=ACTION\", ...]} "
                     "with at most ",
                     FaultTable::kMaxArmed, " faults")));
  }
  std::vector<FaultSpec> specs;
  for (const nlohmann::json& one : *arm) {
    if (!one.is_string()) {
      return absl::InvalidArgumentError("a fault is a string");
    }
    ASSIGN_OR_RETURN(specs.emplace_back(),
                     ParseFault(one.get_ref<const std::string&>()));
  }
  return specs;
}

std::string FaultsJson(const FaultTable& faults) {
  nlohmann::json armed = nlohmann::json::array();
  for (const ArmedFault& fault : faults.armed()) {
    armed.push_back({{"fault", FaultText(fault.spec)},
                     {"reached", fault.reached},
                     {"fired", fault.fired}});
  }
  nlohmann::json points = nlohmann::json::object();
  for (int i = 0; i < kNumFaultIds; ++i) {
    const FaultInfo& info = InfoOf(static_cast<FaultId>(i));
    points[std::string(info.name)] = faults.reached(info.id);
  }
  return nlohmann::json{{"armed", armed}, {"points", points}}.dump();
}

}  // namespace moebius
