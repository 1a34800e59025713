// What `generation_config.json` of a checkpoint says about sampling.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"

namespace moebius {

struct GenerationDefaults {
  std::optional<float> temperature;
  std::optional<float> top_p;
  std::optional<int> top_k;
  std::optional<float> min_p;
  std::optional<float> repetition_penalty;
  std::optional<int> max_new_tokens;
  std::vector<int32_t> eos_ids;
  // What of the files was passed over. At most one a key, and one a file.
  std::vector<std::string> warnings;
};

inline constexpr int kMaxEosIds = 64;

// A value that cannot be is passed over with a warning, which names
// `file_name`, the key and what is allowed: these are but defaults, and others
// serve checkpoints that have such. Errors: no JSON object.
absl::StatusOr<GenerationDefaults> ParseGenerationConfig(
    std::string_view json, std::string_view file_name);

// Reads DIR/generation_config.json, which may be missing. End tokens that it
// does not name come from DIR/config.json.
absl::StatusOr<GenerationDefaults> LoadGenerationDefaults(
    const std::string& model_dir);

// Adds an end token if it is one and is not there yet.
void AddEnd(std::optional<int32_t> id, GenerationDefaults* defaults);

}  // namespace moebius
