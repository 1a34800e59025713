// Integers of a JSON text that no 64-bit number holds.
//
// nlohmann's numbers would make floats of them, which lose digits. Theirs are
// kept as a binary value, the one kind that no JSON text spells.
#pragma once

#include <string_view>

#include "nlohmann/json.hpp"

namespace moebius {

// The value of an integer that is spelled `digits` ("-" may stand before).
inline nlohmann::ordered_json LongInteger(std::string_view digits) {
  return nlohmann::ordered_json::binary({digits.begin(), digits.end()});
}

// How it is spelled. Empty for any other value.
inline std::string_view LongIntegerDigits(const nlohmann::ordered_json& value) {
  if (!value.is_binary()) return {};
  const auto& bytes = value.get_binary();
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

}  // namespace moebius
