// JSON as Python reads it (json.loads), which is more than JSON.
#pragma once

#include <optional>
#include <string_view>

#include "coordinator/api/json_input.h"

namespace moebius {

// Lists and objects inside one another. With what stands around it in a
// conversation this stays within what a chat template may hold.
inline constexpr int kMaxPythonJsonDepth = 128;

// Python writes and reads NaN, Infinity and -Infinity; of a key given twice
// the last value counts, in the first one's place; a number that no double can
// hold is infinite; integers have any length (LongInteger()); half a surrogate
// pair is a character, here U+FFFD. None if Python would refuse the text, or
// if it is nested deeper than kMaxPythonJsonDepth.
std::optional<Json> ParsePythonJson(std::string_view text);

}  // namespace moebius
