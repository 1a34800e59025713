// Evaluates a parsed template.
#pragma once

#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "coordinator/jinja/template_ast.h"
#include "coordinator/jinja/template_runtime.h"

namespace moebius::jinja {

using Context = std::vector<std::pair<std::string, Value>>;

// Renders `parsed` with the variables of `context` and the global functions.
//
// Errors: kInvalidArgument, "line N: reason" for what the template or its
// data does wrong and for exceeded bounds; the template's own words if it
// calls raise_exception.
absl::StatusOr<std::string> RenderTemplate(const Template& parsed,
                                           const Context& context,
                                           Runtime& runtime);

}  // namespace moebius::jinja
