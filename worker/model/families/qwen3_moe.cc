#include "worker/model/families/qwen3_moe.h"

#include <algorithm>
#include <optional>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/base/check.h"
#include "common/base/status_macros.h"
#include "worker/model/families/json_terms.h"

namespace moebius {
namespace {

// Nothing when there are no experts.
absl::StatusOr<std::optional<MoeMlp>> ReadMoe(
    const JsonKeys& keys, const ModelConfig& config,
    const ActivationSpec& activation) {
  MoeMlp moe;
  moe.activation = activation;
  RouterSpec& router = moe.router;
  router.score = RouterSpec::Score::kSoftmax;
  ASSIGN_OR_RETURN(router.renormalize, keys.Bool("norm_topk_prob", false));
  if (config.num_experts == 0) return std::nullopt;
  router.num_experts = config.num_experts;
  ASSIGN_OR_RETURN(
      router.top_k,
      keys.Integer("num_experts_per_tok", 1,
                   std::min<int64_t>(router.num_experts, kMaxExpertsOfToken)));
  ASSIGN_OR_RETURN(moe.rows,
                   keys.Integer("moe_intermediate_size", 1, kMaxIntermediate));
  return moe;
}

absl::StatusOr<GroupedQueryAttention> ReadAttention(const JsonKeys& keys,
                                                    const ModelConfig& config,
                                                    int hidden_size) {
  for (const char* key : {"attention_bias", "use_sliding_window"}) {
    RETURN_IF_ERROR(keys.OnlyFalse(key));
  }
  GroupedQueryAttention attention;
  attention.q_heads = config.num_q_heads;
  attention.kv_heads = config.num_kv_heads;
  ASSIGN_OR_RETURN(attention.head_dim, ReadHeadDim(keys, config, hidden_size));
  attention.qk_norm = GroupedQueryAttention::QkNorm::kPerHead;
  return attention;
}

absl::Status ReadLayers(const JsonKeys& keys, const ModelConfig& config,
                        DecoderSpec& spec) {
  LayerSpec layer;
  ASSIGN_OR_RETURN(const GroupedQueryAttention attention,
                   ReadAttention(keys, config, spec.hidden_size));
  layer.attention = attention;
  ASSIGN_OR_RETURN(layer.rotary, ReadRotary(keys, attention.head_dim));
  ASSIGN_OR_RETURN(const ActivationSpec activation, ReadActivation(keys));
  ASSIGN_OR_RETURN(const std::optional<MoeMlp> moe,
                   ReadMoe(keys, config, activation));
  // Only dense layers have this size.
  const bool all_moe =
      config.num_moe_layers() == static_cast<int>(config.is_moe_layer.size());
  DenseMlp dense;
  dense.activation = activation;
  ASSIGN_OR_RETURN(
      dense.rows, keys.Integer("intermediate_size", 1, kMaxIntermediate,
                               all_moe ? std::optional<int>(0) : std::nullopt));
  for (const bool is_moe : config.is_moe_layer) {
    if (is_moe) {
      layer.mlp = *moe;
    } else {
      layer.mlp = dense;
    }
    spec.layers.push_back(layer);
  }
  return absl::OkStatus();
}

std::string InLayer(int layer, const char* tensor) {
  return absl::StrCat("model.layers.", layer, ".", tensor, ".weight");
}

std::string InExpert(int layer, int expert, const char* matrix) {
  return absl::StrCat("model.layers.", layer, ".mlp.experts.", expert, ".",
                      matrix, ".weight");
}

}  // namespace

absl::StatusOr<DecoderSpec> ReadQwen3Moe(const JsonKeys& keys,
                                         const ModelConfig& config) {
  DecoderSpec spec;
  spec.vocab_size = config.vocab_size;
  spec.max_positions = config.max_positions;
  ASSIGN_OR_RETURN(spec.hidden_size,
                   keys.Integer("hidden_size", 1, kMaxHidden));
  ASSIGN_OR_RETURN(spec.norm_eps,
                   keys.Number("rms_norm_eps", 1e-12, 1.0, 1e-6));
  ASSIGN_OR_RETURN(spec.tied_embedding,
                   keys.Bool("tie_word_embeddings", false));
  RETURN_IF_ERROR(ReadLayers(keys, config, spec));
  return spec;
}

std::string Qwen3MoeTensorName(TensorRole role, int layer, int expert) {
  switch (role) {
    case TensorRole::kEmbedding:
      return "model.embed_tokens.weight";
    case TensorRole::kLmHead:
      return "lm_head.weight";
    case TensorRole::kFinalNorm:
      return "model.norm.weight";
    case TensorRole::kAttentionNorm:
      return InLayer(layer, "input_layernorm");
    case TensorRole::kMlpNorm:
      return InLayer(layer, "post_attention_layernorm");
    case TensorRole::kQuery:
      return InLayer(layer, "self_attn.q_proj");
    case TensorRole::kKey:
      return InLayer(layer, "self_attn.k_proj");
    case TensorRole::kValue:
      return InLayer(layer, "self_attn.v_proj");
    case TensorRole::kQueryNorm:
      return InLayer(layer, "self_attn.q_norm");
    case TensorRole::kKeyNorm:
      return InLayer(layer, "self_attn.k_norm");
    case TensorRole::kAttentionOutput:
      return InLayer(layer, "self_attn.o_proj");
    case TensorRole::kRouter:
      return InLayer(layer, "mlp.gate");
    case TensorRole::kGate:
      return InLayer(layer, "mlp.gate_proj");
    case TensorRole::kUp:
      return InLayer(layer, "mlp.up_proj");
    case TensorRole::kDown:
      return InLayer(layer, "mlp.down_proj");
    case TensorRole::kExpertGate:
      return InExpert(layer, expert, "gate_proj");
    case TensorRole::kExpertUp:
      return InExpert(layer, expert, "up_proj");
    case TensorRole::kExpertDown:
      return InExpert(layer, expert, "down_proj");
  }
  CHECK(false);
}

}  // namespace moebius
