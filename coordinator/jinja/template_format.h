// Python's two ways to format strings, as far as templates use them.
#pragma once

#include <string>
#include <string_view>

#include "absl/status/statusor.h"
#include "coordinator/jinja/template_runtime.h"

namespace moebius::jinja {

// Widths and precisions in format strings.
inline constexpr int kMaxFormatWidth = 1000;

// text.format(...): "{}", "{0}", "{name}", "{{", "}}". Format specifications
// and attribute look-ups in fields are refused.
absl::StatusOr<std::string> FormatBraces(Runtime& runtime,
                                         std::string_view format,
                                         const ArgumentValues& arguments);

}  // namespace moebius::jinja
