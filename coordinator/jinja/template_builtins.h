// The functions, filters, tests and methods that templates call by name.
#pragma once

#include <array>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "coordinator/jinja/template_runtime.h"

namespace moebius::jinja {

// The values that a call passes.
struct ArgumentValues {
  std::vector<Value> positional;
  std::vector<std::pair<std::string, Value>> keyword;
};

class BuiltinCall;

struct Builtin {
  std::string_view name;
  // As Python binds them; the first `num_required` must be given. With "..."
  // as the only one a call may pass anything.
  std::array<std::string_view, 4> parameters;
  size_t num_required;
  ValueOr (*run)(const BuiltinCall& call);
};

// BuiltinCall
//
// A builtin under way: what it is called on, and what each parameter gets.
// Scanning its texts once is paid for.
class BuiltinCall {
 public:
  static absl::StatusOr<BuiltinCall> Bind(Runtime& runtime,
                                          const Builtin& builtin,
                                          const Value& self,
                                          const ArgumentValues& passed);

  Runtime& runtime() const { return *runtime_; }
  // The object of a method, the input of a filter.
  const Value& self() const { return *self_; }
  // REQUIRES: the object is a string.
  std::string_view text() const { return self_->text()->bytes; }
  // The arguments as they came, for builtins that take anything.
  const ArgumentValues& passed() const { return *passed_; }

  bool is_given(size_t i) const { return bound_[i].has_value(); }
  // Also not none.
  bool has(size_t i) const { return is_given(i) && !bound_[i]->is_none(); }
  // None if it is not given.
  Value operator[](size_t i) const { return bound_[i].value_or(Value()); }
  bool is_true(size_t i) const { return IsTrue((*this)[i]); }

  // Errors: not of that type.
  absl::StatusOr<std::string_view> Text(size_t i) const;
  // `absent` if it is not given.
  absl::StatusOr<Int> Integer(size_t i, Int absent = 0) const;

  absl::StatusOr<std::string> ToText(const Value& value) const {
    return jinja::ToText(runtime_->budget, value);
  }
  absl::Status Charge(size_t steps) const {
    return runtime_->budget.Charge(steps);
  }
  absl::Status ChargeBytes(size_t bytes) const {
    return runtime_->budget.ChargeBytes(bytes);
  }
  ValueOr New(std::string text) const {
    return NewString(runtime_->budget, std::move(text));
  }
  ValueOr New(Sequence::Flavor flavor, std::vector<Value> items) const {
    return NewSequence(runtime_->budget, flavor, std::move(items));
  }

 private:
  BuiltinCall() = default;

  Runtime* runtime_;
  const Builtin* builtin_;
  const Value* self_;
  const ArgumentValues* passed_;
  std::array<std::optional<Value>, 4> bound_;
};

// The entries of a dict as tuples.
absl::StatusOr<std::vector<Value>> Pairs(Runtime& runtime, const Dict& dict);

absl::StatusOr<std::string_view> StringArgument(std::string_view name,
                                                const Value& value);

ValueOr CallBuiltin(Runtime& runtime, const Builtin& builtin, const Value& self,
                    const ArgumentValues& arguments);

// input|name(arguments). Errors: no such filter; what the filter refuses.
ValueOr CallFilter(Runtime& runtime, std::string_view name, const Value& input,
                   const ArgumentValues& arguments);

// input is name(arguments).
absl::StatusOr<bool> CallTest(Runtime& runtime, std::string_view name,
                              const Value& input,
                              const ArgumentValues& arguments);

// The row of that name in a table, or null.
template <typename Row>
const Row* FindNamed(absl::Span<const Row> table, std::string_view name) {
  for (const Row& row : table) {
    if (row.name == name) return &row;
  }
  return nullptr;
}

// The method that values of this type have under `name`, or null.
const Builtin* FindMethod(const Value& object, std::string_view name);

absl::Span<const Builtin> Functions();  // that all templates see

}  // namespace moebius::jinja
