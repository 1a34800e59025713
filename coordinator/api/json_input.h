// Reading JSON that a client sent.
#pragma once

#include <string_view>

#include "absl/status/statusor.h"
#include "nlohmann/json.hpp"

namespace moebius {

// Objects keep the order of their keys: chat templates print tools as sent. An
// integer beyond 64 bits is a LongInteger() (json_integer.h), for the same
// reason; no field of a request is one.
using Json = nlohmann::ordered_json;

inline constexpr int kMaxJsonDepth = 64;
inline constexpr int kMaxJsonKeys = 4096;  // of one object

// Parses one JSON value. Errors, kInvalidArgument with the place: not JSON
// (NaN, infinities and comments are not), invalid UTF-8, a number that no
// double can hold, a key twice in one object, more than kMaxJsonDepth levels
// or kMaxJsonKeys keys.
absl::StatusOr<Json> ParseJson(std::string_view text);

}  // namespace moebius
