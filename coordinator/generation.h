// A generation as its values: what the front asks for, the decisions plan, and
// the journal keeps.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "common/step/sampling_params.h"

namespace moebius {

// When a generation ends, and what of its end is shown.
struct StopCriteria {
  int max_tokens = 16;  // at least 1
  int min_tokens = 0;
  bool ignore_eos = false;
  std::vector<int32_t> eos_ids;  // end without being shown
  std::vector<int32_t> stop_token_ids;
  std::vector<std::string> stop;  // at most 16 of 256 bytes
  bool include_stop_str_in_output = false;
  bool skip_special_tokens = true;  // in the text
  friend bool operator==(const StopCriteria&, const StopCriteria&) = default;
};

// Generations of one request.
inline constexpr int kMaxGenerations = 4096;
// One generation: one choice of one prompt. A request with n choices is n of
// them (with seeds seed, seed+1, ...).
struct Generation {
  // 1 .. max_model_len - 1 tokens; with max_tokens 1 also as many as that.
  std::vector<int32_t> prompt;
  SamplingParams sampling;
  StopCriteria stop;
  friend bool operator==(const Generation&, const Generation&) = default;
};

// kError: the workers refuse to compute it; stop_reason says why.
enum class FinishReason { kStop, kLength, kAbort, kError };

}  // namespace moebius
