// What one rendering owns, and what operators and builtins do with values.
#pragma once

#include <deque>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "coordinator/jinja/template_ast.h"
#include "coordinator/jinja/template_limits.h"
#include "coordinator/jinja/template_value.h"

namespace moebius::jinja {

using Items = std::shared_ptr<const std::vector<Value>>;

// namespace(...): the one value whose contents change.
struct Namespace {
  absl::flat_hash_map<std::string, Value> attributes;
};

// The variable `loop` of a for.
struct Loop {
  Items items;
  size_t index0 = 0;
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

  // Errors: kInvalidArgument beyond kMaxEvaluationDepth.
  absl::Status CheckDepth() const;
};

// iter(value): items, characters or keys. A generator is used up.
absl::StatusOr<Items> Iterate(Runtime& runtime, const Value& value);

// object.name and object[key]. A name that is not there gives an undefined
// value; only an undefined object is an error.
ValueOr GetAttribute(Runtime& runtime, const Value& object,
                     std::string_view name);
ValueOr GetItem(Runtime& runtime, const Value& object, const Value& key);
// object[start:stop:step]; none where absent.
ValueOr GetSlice(Runtime& runtime, const Value& object, const Value& start,
                 const Value& stop, const Value& step);

// a op b, for an operator of two operands that is no subscript.
ValueOr Operate(Runtime& runtime, Op op, const Value& a, const Value& b);
absl::StatusOr<bool> Contains(Runtime& runtime, const Value& haystack,
                              const Value& needle);

}  // namespace moebius::jinja
