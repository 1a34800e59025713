#include "worker/model/families/qwen3_moe.h"

#include <optional>
#include <vector>

#include "common/base/status_macros.h"
#include "worker/model/families/dense_names.h"
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
  ASSIGN_OR_RETURN(router.top_k, ReadTopK(keys, config));
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
  RETURN_IF_ERROR(OnlyFullAttention(keys));
  ASSIGN_OR_RETURN(GroupedQueryAttention attention,
                   ReadHeads(keys, config, hidden_size));
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
  return AddLayers(keys, config, layer, moe, spec.layers);
}

}  // namespace

absl::StatusOr<DecoderSpec> ReadQwen3Moe(const JsonKeys& keys,
                                         const ModelConfig& config) {
  ASSIGN_OR_RETURN(DecoderSpec spec, ReadSizes(keys, config, 1e-6));
  RETURN_IF_ERROR(ReadLayers(keys, config, spec));
  return spec;
}

std::string Qwen3MoeTensorName(TensorRole role, int layer, int expert) {
  return QwenTensorName(role, layer, expert);
}

}  // namespace moebius
