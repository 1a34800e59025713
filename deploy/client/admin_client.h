// What the command line asks of a group's admin listener.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "deploy/client/event_loop.h"
#include "deploy/client/http_client.h"
#include "nlohmann/json.hpp"

namespace moebius {

inline constexpr char kDefaultAdminUrl[] = "http://127.0.0.1:8001";
inline constexpr char kDefaultApiUrl[] = "http://127.0.0.1:8000";

// Lookups that never throw: the fallback where a key is absent or its value of
// another type.
double NumberAt(const nlohmann::json& object, const char* key,
                double fallback = 0.0);
uint64_t CountAt(const nlohmann::json& object, const char* key);
bool BoolAt(const nlohmann::json& object, const char* key);
std::string TextAt(const nlohmann::json& object, const char* key);
// An empty object where there is none.
const nlohmann::json& ObjectAt(const nlohmann::json& object, const char* key);

// The JSON object that an answer with code 2xx carries. Otherwise an error with
// the server's message: kUnavailable for 503, kFailedPrecondition for
// 409, kInvalidArgument for other codes from 400 to 499, kInternal for the
// rest.
absl::StatusOr<nlohmann::json> ParseAnswer(const HttpAnswer& answer);

absl::StatusOr<nlohmann::json> FetchStatus(EventLoop& loop, const Url& admin,
                                           absl::Duration timeout);

// Figures of one switch (see coordinator/engine/engine.h SwitchReport).
struct SwitchFigures {
  std::string from, to;
  bool done = false;   // false: there was nothing to do, or it was refused
  std::string reason;  // of a refusal
  uint64_t weight_bytes = 0, kv_bytes = 0;
  double prepare_ms = 0, pause_ms = 0, switch_ms = 0;
  double weight_ms = 0, kv_ms = 0;
};
SwitchFigures ParseSwitchFigures(const nlohmann::json& report);

// Asks for a layout ("ep", "tp", "auto") and waits until the switch has ended;
// one that is in force already comes back with `done` false.
// Errors: also kFailedPrecondition with the reason when it was refused.
absl::StatusOr<SwitchFigures> RequestLayout(EventLoop& loop, const Url& admin,
                                            std::string_view layout,
                                            absl::Duration timeout);

}  // namespace moebius
