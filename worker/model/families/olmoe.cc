#include "worker/model/families/olmoe.h"

#include "common/base/status_macros.h"
#include "worker/model/families/dense_names.h"
#include "worker/model/families/json_terms.h"

namespace moebius {
namespace {

absl::StatusOr<GroupedQueryAttention> ReadAttention(const JsonKeys& keys,
                                                    const ModelConfig& config,
                                                    int hidden_size) {
  RETURN_IF_ERROR(keys.OnlyFalse("attention_bias"));
  RETURN_IF_ERROR(OnlyFullAttention(keys));
  if (keys.Find("clip_qkv") != nullptr) {
    return keys.Error("clip_qkv",
                      "clipped queries, keys and values are not supported; "
                      "allowed: null");
  }
  ASSIGN_OR_RETURN(GroupedQueryAttention attention,
                   ReadHeads(keys, config, hidden_size));
  attention.qk_norm = GroupedQueryAttention::QkNorm::kWholeRow;
  return attention;
}

}  // namespace

absl::StatusOr<DecoderSpec> ReadOlmoe(const JsonKeys& keys,
                                      const ModelConfig& config) {
  ASSIGN_OR_RETURN(DecoderSpec spec, ReadSizes(keys, config, 1e-5));
  ASSIGN_OR_RETURN(const GroupedQueryAttention attention,
                   ReadAttention(keys, config, spec.hidden_size));
  ASSIGN_OR_RETURN(const RotarySpec rotary,
                   ReadRotary(keys, attention.head_dim));
  RETURN_IF_ERROR(OnlyMoeLayers(keys, config, "num_experts"));
  MoeMlp moe;
  ASSIGN_OR_RETURN(moe.activation, ReadActivation(keys));
  moe.router.num_experts = config.num_experts;
  ASSIGN_OR_RETURN(moe.router.top_k, ReadTopK(keys, config));
  ASSIGN_OR_RETURN(moe.router.renormalize, keys.Bool("norm_topk_prob", false));
  ASSIGN_OR_RETURN(moe.rows,
                   keys.Integer("intermediate_size", 1, kMaxIntermediate));
  spec.layers.assign(config.is_moe_layer.size(), {attention, rotary, moe});
  return spec;
}

std::string OlmoeTensorName(TensorRole role, int layer, int expert) {
  return QwenTensorName(role, layer, expert);
}

}  // namespace moebius
