// What every program wants to know of a checkpoint's `config.json`. What the
// model computes is read by its family (worker/model/families/).
#pragma once

#include <algorithm>
#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"

namespace moebius {

struct ModelConfig {
  std::string architecture;        // one of kServedArchitectures
  std::vector<bool> is_moe_layer;  // [layers]
  int num_experts = 0;             // of a MoE layer
  int num_q_heads = 0;
  int num_kv_heads = 0;  // divides num_q_heads
  int vocab_size = 0;
  // max_position_embeddings, or more where rotary embedding is scaled.
  int max_positions = 0;
  int num_moe_layers() const;
};

// Each has a family; a test compares.
inline constexpr std::string_view kServedArchitectures[] = {
    "Qwen3MoeForCausalLM", "MixtralForCausalLM", "OlmoeForCausalLM",
    "Qwen2MoeForCausalLM", "GptOssForCausalLM",
};

// Longest sequence served: what the model allows, or `max_model_len` where that
// is less and not 0.
inline int ContextLength(int max_positions, int max_model_len) {
  return max_model_len == 0 ? max_positions
                            : std::min(max_model_len, max_positions);
}

inline constexpr size_t kMaxModelConfigBytes = 1 << 20;

// Parses and checks `config.json`. An architecture that is not served is
// refused with the list of those that are, and so are quantised weights. Sizes
// are bounded (see the .cc file). Errors name `file_name`, the key and what is
// allowed.
absl::StatusOr<ModelConfig> ParseModelConfig(std::string_view json,
                                             std::string_view file_name);
// Reads DIR/config.json.
absl::StatusOr<ModelConfig> LoadModelConfig(const std::string& model_dir);

}  // namespace moebius
