#include "worker/model/families/qwen2_moe.h"

#include <optional>

#include "common/base/status_macros.h"
#include "worker/model/families/dense_names.h"
#include "worker/model/families/json_terms.h"

namespace moebius {
namespace {

absl::StatusOr<GroupedQueryAttention> ReadAttention(const JsonKeys& keys,
                                                    const ModelConfig& config,
                                                    int hidden_size) {
  RETURN_IF_ERROR(keys.OnlyFalse("use_sliding_window"));
  RETURN_IF_ERROR(OnlyFullAttention(keys));
  ASSIGN_OR_RETURN(GroupedQueryAttention attention,
                   ReadHeads(keys, config, hidden_size));
  ASSIGN_OR_RETURN(attention.qkv_bias, keys.Bool("qkv_bias", true));
  return attention;
}

absl::StatusOr<MoeMlp> ReadMoe(const JsonKeys& keys,
                               const ModelConfig& config) {
  MoeMlp moe;
  ASSIGN_OR_RETURN(moe.activation, ReadActivation(keys));
  moe.router.num_experts = config.num_experts;
  ASSIGN_OR_RETURN(moe.router.top_k, ReadTopK(keys, config));
  ASSIGN_OR_RETURN(moe.router.renormalize, keys.Bool("norm_topk_prob", false));
  ASSIGN_OR_RETURN(moe.rows,
                   keys.Integer("moe_intermediate_size", 1, kMaxIntermediate));
  SharedExpert shared;
  shared.gated = true;
  ASSIGN_OR_RETURN(shared.rows, keys.Integer("shared_expert_intermediate_size",
                                             1, kMaxIntermediate));
  moe.shared = shared;
  return moe;
}

}  // namespace

absl::StatusOr<DecoderSpec> ReadQwen2Moe(const JsonKeys& keys,
                                         const ModelConfig& config) {
  ASSIGN_OR_RETURN(DecoderSpec spec, ReadSizes(keys, config, 1e-6));
  LayerSpec layer;
  ASSIGN_OR_RETURN(const GroupedQueryAttention attention,
                   ReadAttention(keys, config, spec.hidden_size));
  layer.attention = attention;
  ASSIGN_OR_RETURN(layer.rotary, ReadRotary(keys, attention.head_dim));
  std::optional<MoeMlp> moe;
  if (config.num_moe_layers() > 0) {
    ASSIGN_OR_RETURN(moe, ReadMoe(keys, config));
  }
  RETURN_IF_ERROR(AddLayers(keys, config, layer, moe, spec.layers));
  return spec;
}

std::string Qwen2MoeTensorName(TensorRole role, int layer, int expert) {
  switch (role) {
    case TensorRole::kSharedGate:
      return NameInLayer(layer, "mlp.shared_expert.gate_proj.weight");
    case TensorRole::kSharedUp:
      return NameInLayer(layer, "mlp.shared_expert.up_proj.weight");
    case TensorRole::kSharedDown:
      return NameInLayer(layer, "mlp.shared_expert.down_proj.weight");
    case TensorRole::kSharedRouter:
      return NameInLayer(layer, "mlp.shared_expert_gate.weight");
    default:
      return QwenTensorName(role, layer, expert);
  }
}

}  // namespace moebius
