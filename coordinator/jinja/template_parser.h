// Parses template source into a tree.
#pragma once

#include <string_view>

#include "absl/status/statusor.h"
#include "coordinator/jinja/template_ast.h"

namespace moebius::jinja {

// Understands Jinja's expressions and its statements for, if, set, macro,
// call, filter, with, raw, print, break, continue, and Hugging Face's
// generation. Not: include, import, extends, block, autoescape, recursive
// loops.
//
// Errors: kInvalidArgument "line N: reason".
absl::StatusOr<Template> ParseTemplate(std::string_view source);

}  // namespace moebius::jinja
