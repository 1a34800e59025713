// The functions, filters, tests and methods that templates call by name.
#pragma once

#include <string_view>

#include "absl/status/statusor.h"
#include "coordinator/jinja/template_runtime.h"

namespace moebius::jinja {

// input|name(arguments). Errors: no such filter; what the filter refuses.
absl::StatusOr<Value> CallFilter(Runtime& runtime, std::string_view name,
                                 const Value& input,
                                 const ArgumentValues& arguments);
bool IsFilter(std::string_view name);

// input is name(arguments).
absl::StatusOr<bool> CallTest(Runtime& runtime, std::string_view name,
                              const Value& input,
                              const ArgumentValues& arguments);

// What Python finds under `name` on a value of this type.
enum class MethodKind {
  kNone,
  kCallable,
  kUnsafe,  // changes its object: the sandbox refuses it
};
MethodKind FindMethod(const Value& object, std::string_view name);
absl::StatusOr<Value> CallMethod(Runtime& runtime, const BoundMethod& method,
                                 const ArgumentValues& arguments);
// Of strings (template_string_methods.cc).
bool IsStringMethod(std::string_view name);
absl::StatusOr<Value> CallStringMethod(Runtime& runtime, const Text& self,
                                       std::string_view name,
                                       const ArgumentValues& arguments);

absl::StatusOr<Value> CallFunction(Runtime& runtime, GlobalFunction function,
                                   const ArgumentValues& arguments);

}  // namespace moebius::jinja
