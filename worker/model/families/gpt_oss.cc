#include "worker/model/families/gpt_oss.h"

#include <cstdint>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/base/status_macros.h"
#include "worker/model/families/dense_names.h"
#include "worker/model/families/json_terms.h"

namespace moebius {
namespace {

// Whether each layer sees its window alone.
absl::StatusOr<std::vector<bool>> ReadSliding(const JsonKeys& keys,
                                              size_t num_layers) {
  std::vector<bool> sliding;
  const JsonKeys::Json* types = keys.Find("layer_types");
  if (types == nullptr) {
    for (size_t l = 0; l < num_layers; ++l) sliding.push_back(l % 2 == 0);
    return sliding;
  }
  if (!types->is_array() || types->size() != num_layers) {
    return keys.Error("layer_types",
                      absl::StrCat("must be a list of ", num_layers,
                                   " types, one for each layer"));
  }
  for (const JsonKeys::Json& type : *types) {
    if (type != "sliding_attention" && type != "full_attention") {
      return keys.Error(
          "layer_types",
          absl::StrCat(JsonKeys::Show(type),
                       " is not supported; allowed: \"sliding_attention\" or "
                       "\"full_attention\""));
    }
    sliding.push_back(type == "sliding_attention");
  }
  return sliding;
}

absl::StatusOr<GroupedQueryAttention> ReadAttention(const JsonKeys& keys,
                                                    const ModelConfig& config,
                                                    int hidden_size) {
  ASSIGN_OR_RETURN(GroupedQueryAttention attention,
                   ReadHeads(keys, config, hidden_size));
  ASSIGN_OR_RETURN(attention.qkv_bias, keys.Bool("attention_bias", true));
  attention.output_bias = attention.qkv_bias;
  attention.sinks = true;
  return attention;
}

// The weights are the softmax of the chosen logits.
absl::StatusOr<MoeMlp> ReadMoe(const JsonKeys& keys,
                               const ModelConfig& config) {
  RETURN_IF_ERROR(OnlyMoeLayers(keys, config, "num_local_experts"));
  RETURN_IF_ERROR(keys.Only("hidden_act", "silu"));
  MoeMlp moe;
  ClampedSwiGlu activation;
  activation.alpha = 1.702;  // of the model's code, in no file
  ASSIGN_OR_RETURN(activation.limit,
                   keys.Number("swiglu_limit", 1e-3, 1e6, 7.0));
  moe.activation = activation;
  moe.bias = true;
  moe.router.num_experts = config.num_experts;
  moe.router.score = RouterSpec::Score::kSoftmaxOfChosen;
  moe.router.bias = true;
  ASSIGN_OR_RETURN(moe.router.top_k, ReadTopK(keys, config));
  ASSIGN_OR_RETURN(moe.rows,
                   keys.Integer("intermediate_size", 1, kMaxIntermediate));
  return moe;
}

}  // namespace

absl::StatusOr<DecoderSpec> ReadGptOss(const JsonKeys& keys,
                                       const ModelConfig& config) {
  if (keys.Find("rope_scaling") == nullptr &&
      keys.Find("rope_parameters") == nullptr) {
    return keys.Error("rope_scaling",
                      "missing, as rope_parameters is; must be an object with "
                      "rope_type \"yarn\"");
  }
  ASSIGN_OR_RETURN(DecoderSpec spec, ReadSizes(keys, config, 1e-5));
  LayerSpec layer;
  ASSIGN_OR_RETURN(GroupedQueryAttention attention,
                   ReadAttention(keys, config, spec.hidden_size));
  ASSIGN_OR_RETURN(layer.rotary,
                   ReadRotary(keys, attention.head_dim, 150000.0));
  ASSIGN_OR_RETURN(const MoeMlp moe, ReadMoe(keys, config));
  layer.mlp = moe;
  ASSIGN_OR_RETURN(const int window,
                   keys.Integer("sliding_window", 1, INT32_MAX, 128));
  ASSIGN_OR_RETURN(const std::vector<bool> sliding,
                   ReadSliding(keys, config.is_moe_layer.size()));
  for (const bool slides : sliding) {
    attention.window = slides ? window : 0;
    layer.attention = attention;
    spec.layers.push_back(layer);
  }
  return spec;
}

// Of experts these are names that fused_experts.h knows.
std::string GptOssTensorName(TensorRole role, int layer, int expert) {
  const auto in_expert = [&](const char* tensor) {
    return absl::StrCat("model.layers.", layer, ".mlp.experts.", expert, ".",
                        tensor);
  };
  switch (role) {
    case TensorRole::kRouter:
      return NameInLayer(layer, "mlp.router.weight");
    case TensorRole::kRouterBias:
      return NameInLayer(layer, "mlp.router.bias");
    case TensorRole::kExpertGate:
      return in_expert("gate");
    case TensorRole::kExpertUp:
      return in_expert("up");
    case TensorRole::kExpertDown:
      return in_expert("down");
    case TensorRole::kExpertGateBias:
      return in_expert("gate_bias");
    case TensorRole::kExpertUpBias:
      return in_expert("up_bias");
    case TensorRole::kExpertDownBias:
      return in_expert("down_bias");
    default:
      return DenseTensorName(role, layer);
  }
}

}  // namespace moebius
