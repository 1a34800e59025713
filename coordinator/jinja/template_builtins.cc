#include "coordinator/jinja/template_builtins.h"

#include <algorithm>

#include "common/base/cat.h"
#include "common/base/status_macros.h"

namespace moebius::jinja {
namespace {

// What it takes to read a text once; nothing for other values.
absl::Status ChargeScan(Runtime& runtime, const Value& value) {
  if (!value.text()) return absl::OkStatus();
  return runtime.budget.ChargeBytes(value.text()->bytes.size());
}

}  // namespace

absl::StatusOr<BuiltinCall> BuiltinCall::Bind(Runtime& runtime,
                                              const Builtin& builtin,
                                              const Value& self,
                                              const ArgumentValues& passed) {
  BuiltinCall call;
  call.runtime_ = &runtime;
  call.builtin_ = &builtin;
  call.self_ = &self;
  call.passed_ = &passed;
  const auto& names = builtin.parameters;
  if (names[0] == "...") return call;
  const auto names_end = std::find(names.begin(), names.end(), "");
  const size_t num_parameters = names_end - names.begin();
  if (passed.positional.size() > num_parameters) {
    return TypeError(Cat("'", builtin.name, "' is supported with at most ",
                         num_parameters, " arguments"));
  }
  std::copy(passed.positional.begin(), passed.positional.end(),
            call.bound_.begin());
  for (const auto& [name, value] : passed.keyword) {
    const auto at = std::find(names.begin(), names_end, name);
    if (at == names_end || call.is_given(at - names.begin())) {
      return TypeError(Cat("the argument '", name, "' of '", builtin.name,
                           "' is not supported, or is given twice"));
    }
    call.bound_[at - names.begin()] = value;
  }
  for (size_t i = 0; i < builtin.num_required; ++i) {
    if (call.is_given(i)) continue;
    return TypeError(
        Cat("'", builtin.name, "' misses its argument '", names[i], "'"));
  }
  return call;
}

absl::StatusOr<std::vector<Value>> Pairs(Runtime& runtime, const Dict& dict) {
  std::vector<Value> pairs;
  pairs.reserve(dict.entries.size());
  for (const auto& [key, value] : dict.entries) {
    ASSIGN_OR_RETURN(
        Value pair,
        NewSequence(runtime.budget, Sequence::Flavor::kTuple, {key, value}));
    pairs.push_back(std::move(pair));
  }
  return pairs;
}

absl::StatusOr<std::string_view> StringArgument(std::string_view name,
                                                const Value& value) {
  if (auto text = value.text()) return std::string_view(text->bytes);
  return TypeErrorOf(
      value, Cat("'", name, "' must be a string, not ", TypeName(value)));
}

absl::StatusOr<std::string_view> BuiltinCall::Text(size_t i) const {
  return StringArgument(builtin_->parameters[i], *bound_[i]);
}

absl::StatusOr<Int> BuiltinCall::Integer(size_t i, Int absent) const {
  if (!is_given(i)) return absent;
  if (auto integer = AsInteger(*bound_[i])) return *integer;
  return TypeErrorOf(*bound_[i],
                     Cat("'", builtin_->parameters[i],
                         "' must be an integer, not ", TypeName(*bound_[i])));
}

ValueOr CallBuiltin(Runtime& runtime, const Builtin& builtin, const Value& self,
                    const ArgumentValues& arguments) {
  RETURN_IF_ERROR(runtime.budget.Charge(1));
  RETURN_IF_ERROR(ChargeScan(runtime, self));
  for (const Value& argument : arguments.positional) {
    RETURN_IF_ERROR(ChargeScan(runtime, argument));
  }
  ASSIGN_OR_RETURN(const BuiltinCall call,
                   BuiltinCall::Bind(runtime, builtin, self, arguments));
  return builtin.run(call);
}

}  // namespace moebius::jinja
