// What `config.json` of a checkpoint says (Qwen3MoeForCausalLM).
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"

namespace moebius {

struct ModelConfig {
  std::string architecture;  // "Qwen3MoeForCausalLM"
  int hidden_size = 0;
  int num_layers = 0;
  int num_q_heads = 0;
  int num_kv_heads = 0;
  int head_dim = 0;
  int intermediate_size = 0;      // of dense layers
  int moe_intermediate_size = 0;  // of one expert
  int num_experts = 0;
  int experts_per_token = 0;
  bool norm_topk_prob = true;
  bool attention_bias = false;  // only false is supported
  bool tie_word_embeddings = false;
  int vocab_size = 0;
  int max_positions = 0;  // max_position_embeddings
  double rope_theta = 10000.0;
  double rms_norm_eps = 1e-6;
  std::vector<bool> is_moe_layer;  // [num_layers], from decoder_sparse_step
                                   // and mlp_only_layers
  int num_moe_layers() const;
};

// Longest sequence served: what the model allows, or `max_model_len` where that
// is less and not 0.
inline int ContextLength(const ModelConfig& model, int max_model_len) {
  return max_model_len == 0 ? model.max_positions
                            : std::min(max_model_len, model.max_positions);
}

inline constexpr size_t kMaxModelConfigBytes = 1 << 20;

// Parses and checks `config.json`. Sizes are bounded (see the .cc file), so
// products of them fit in 64 bits. Errors name `file_name`, the key and what is
// allowed.
absl::StatusOr<ModelConfig> ParseModelConfig(std::string_view json,
                                             std::string_view file_name);
// Reads DIR/config.json.
absl::StatusOr<ModelConfig> LoadModelConfig(const std::string& model_dir);

}  // namespace moebius
