// Values from JSON and to it; their text is made by the same writer.
#pragma once

#include <optional>
#include <string>

#include "absl/status/statusor.h"
#include "coordinator/jinja/template_value.h"
#include "nlohmann/json.hpp"

namespace moebius::jinja {

using Json = nlohmann::ordered_json;

// Errors: kInvalidArgument for text that is not UTF-8, values nested deeper
// than kMaxValueDepth, and a short budget. `depth` is that of what is around.
ValueOr FromJson(Budget& budget, const Json& json, int depth = 0);

// Python's json.dumps.
struct JsonStyle {
  bool ensure_ascii = false;
  // Text of one level of indentation; without it all is on one line.
  std::optional<std::string> indent;
  std::string item_separator = ", ";
  std::string key_separator = ": ";
};

// Errors: kInvalidArgument for what JSON has no form for.
absl::StatusOr<std::string> ToJson(Budget& budget, const Value& value,
                                   const JsonStyle& style);

}  // namespace moebius::jinja
