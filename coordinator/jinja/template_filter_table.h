// How a file of filters hands its functions to the dispatcher.
#pragma once

#include <string_view>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "coordinator/jinja/template_runtime.h"

namespace moebius::jinja {

struct NamedFilter {
  std::string_view name;
  absl::StatusOr<Value> (*call)(Runtime& runtime, const Value& input,
                                const ArgumentValues& arguments);
};

// Those of template_sequence_filters.cc.
absl::Span<const NamedFilter> SequenceFilters();

}  // namespace moebius::jinja
