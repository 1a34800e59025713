// A Qwen3-MoE model of any size, in the words of its config.json; as other
// families have it, without QK-norm.
#pragma once

#include <vector>

#include "worker/model/decoder_spec.h"
#include "worker/model/families/qwen3_moe.h"

namespace moebius {

struct SmallModel {
  int hidden_size = 0;
  int num_q_heads = 0;
  int num_kv_heads = 0;
  int head_dim = 0;
  int intermediate_size = 0;      // of dense layers
  int moe_intermediate_size = 0;  // of one expert
  int num_experts = 0;
  int experts_per_token = 0;
  bool qk_norm = true;
  bool norm_topk_prob = true;
  bool tie_word_embeddings = false;
  int vocab_size = 0;
  int max_positions = 0;
  double rope_theta = 10000;
  std::vector<bool> is_moe_layer;  // [layers]
};

inline constexpr TensorNames kSmallModelNames = &Qwen3MoeTensorName;

inline DecoderSpec SpecOf(const SmallModel& model) {
  LayerSpec layer;
  GroupedQueryAttention attention;
  attention.q_heads = model.num_q_heads;
  attention.kv_heads = model.num_kv_heads;
  attention.head_dim = model.head_dim;
  if (model.qk_norm) {
    attention.qk_norm = GroupedQueryAttention::QkNorm::kPerHead;
  }
  layer.attention = attention;
  layer.rotary.theta = model.rope_theta;
  layer.rotary.dims = model.head_dim;
  DenseMlp dense;
  dense.rows = model.intermediate_size;
  MoeMlp moe;
  moe.rows = model.moe_intermediate_size;
  moe.router.num_experts = model.num_experts;
  moe.router.top_k = model.experts_per_token;
  moe.router.renormalize = model.norm_topk_prob;

  DecoderSpec spec;
  spec.hidden_size = model.hidden_size;
  spec.vocab_size = model.vocab_size;
  spec.max_positions = model.max_positions;
  spec.tied_embedding = model.tie_word_embeddings;
  for (const bool is_moe : model.is_moe_layer) {
    if (is_moe) {
      layer.mlp = moe;
    } else {
      layer.mlp = dense;
    }
    spec.layers.push_back(layer);
  }
  return spec;
}

// Odd in every way: dense layers first and between, untied embedding, weights
// of the router not normalised, fewer KV heads than ranks, a vocabulary of no
// whole number of panels, an MLP of 5 units.
inline SmallModel OddConfig() {
  SmallModel config;
  config.hidden_size = 80;
  config.num_q_heads = 8;
  config.num_kv_heads = 2;
  config.head_dim = 48;
  config.intermediate_size = 80;
  config.moe_intermediate_size = 128;
  config.num_experts = 8;
  config.experts_per_token = 3;
  config.norm_topk_prob = false;
  config.tie_word_embeddings = false;
  config.vocab_size = 149;
  config.max_positions = 256;
  config.rope_theta = 1e6;
  config.is_moe_layer = {false, true, false, true};
  return config;
}

}  // namespace moebius
