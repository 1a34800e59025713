// What one rendering owns, and what operators and builtins do with values.
#pragma once

#include <deque>
#include <initializer_list>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "coordinator/jinja/template_limits.h"
#include "coordinator/jinja/template_value.h"

namespace moebius::jinja {

using Items = std::shared_ptr<const std::vector<Value>>;

// namespace(...): the one value whose contents change.
struct Namespace {
  std::vector<std::pair<Value, Value>> attributes;  // keys are strings

  const Value* Find(std::string_view name) const;
  void Set(std::string_view name, Value value);
};

// The variable `loop` of a for.
struct Loop {
  Items items;
  size_t index0 = 0;
  std::optional<std::vector<Value>> last_changed;  // loop.changed(...)
};

// Runtime
//
// The state of one rendering that builtins may touch. Namespaces may refer to
// each other in circles, so they live here and end with the rendering.
// Threading: thread-compatible.
struct Runtime {
  Runtime(absl::Time now, absl::TimeZone zone) : now(now), zone(zone) {}
  Runtime(const Runtime&) = delete;

  Budget budget;
  const absl::Time now;  // for strftime_now
  const absl::TimeZone zone;
  // The template called raise_exception: the error is its own words.
  bool raised = false;
  std::deque<Namespace> namespaces;
  int depth = 0;  // nodes, calls and filters under evaluation
};

// Counts one level of evaluation for as long as it lives.
class EvaluationLevel {
 public:
  explicit EvaluationLevel(Runtime& runtime) : depth_(runtime.depth) {
    ++depth_;
  }
  ~EvaluationLevel() { --depth_; }
  EvaluationLevel(const EvaluationLevel&) = delete;

  // Errors: kInvalidArgument beyond kMaxEvaluationDepth.
  absl::Status Check() const;

 private:
  int& depth_;
};

// The values that a call passes.
struct ArgumentValues {
  std::vector<Value> positional;
  std::vector<std::pair<std::string, Value>> keyword;
};

// Arguments by the parameters' names, as Python binds them: bound[i] belongs
// to names[i]. The first `num_required` must be there.
absl::StatusOr<std::vector<std::optional<Value>>> BindArguments(
    std::string_view callee, const ArgumentValues& arguments,
    std::initializer_list<std::string_view> names, size_t num_required);

// Arguments of a certain type.
absl::StatusOr<Int> IntegerArgument(std::string_view name, const Value& value);
// The number clamped to +-2^62, for counts and places.
absl::StatusOr<long> CountArgument(std::string_view name, const Value& value);
absl::StatusOr<std::string_view> StringArgument(std::string_view name,
                                                const Value& value);

// iter(value): items, characters or keys. A generator is used up.
absl::StatusOr<Items> Iterate(Runtime& runtime, const Value& value);

// len(value).
absl::StatusOr<size_t> Length(const Value& value);

// object.name and object[key]. A name that is not there gives an undefined
// value; only an undefined object is an error.
absl::StatusOr<Value> GetAttribute(Runtime& runtime, const Value& object,
                                   std::string_view name);
absl::StatusOr<Value> GetItem(Runtime& runtime, const Value& object,
                              const Value& key);
// object[start:stop:step]; none where absent.
absl::StatusOr<Value> GetSlice(Runtime& runtime, const Value& object,
                               const Value& start, const Value& stop,
                               const Value& step);

// needle in haystack.
absl::StatusOr<bool> Contains(Runtime& runtime, const Value& haystack,
                              const Value& needle);

// Python's arithmetic.
absl::StatusOr<Value> Add(Runtime& runtime, const Value& a, const Value& b);
absl::StatusOr<Value> Subtract(const Value& a, const Value& b);
absl::StatusOr<Value> Multiply(Runtime& runtime, const Value& a,
                               const Value& b);
absl::StatusOr<Value> Divide(const Value& a, const Value& b);
absl::StatusOr<Value> FloorDivide(const Value& a, const Value& b);
// Also "format" % values.
absl::StatusOr<Value> Modulo(Runtime& runtime, const Value& a, const Value& b);
absl::StatusOr<Value> Power(const Value& a, const Value& b);
absl::StatusOr<Value> Negate(const Value& a);

// "%s of %d" % values. `values` are positional; one mapping serves "%(name)s".
absl::StatusOr<std::string> FormatPercent(Runtime& runtime,
                                          std::string_view format,
                                          const std::vector<Value>& values,
                                          const Value& mapping);

}  // namespace moebius::jinja
