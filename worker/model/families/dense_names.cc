#include "worker/model/families/dense_names.h"

#include "absl/strings/str_cat.h"
#include "common/base/check.h"

namespace moebius {

std::string NameInLayer(int layer, const char* tensor) {
  return absl::StrCat("model.layers.", layer, ".", tensor);
}

std::string DenseTensorName(TensorRole role, int layer) {
  switch (role) {
    case TensorRole::kEmbedding:
      return "model.embed_tokens.weight";
    case TensorRole::kLmHead:
      return "lm_head.weight";
    case TensorRole::kFinalNorm:
      return "model.norm.weight";
    case TensorRole::kAttentionNorm:
      return NameInLayer(layer, "input_layernorm.weight");
    case TensorRole::kMlpNorm:
      return NameInLayer(layer, "post_attention_layernorm.weight");
    case TensorRole::kQuery:
      return NameInLayer(layer, "self_attn.q_proj.weight");
    case TensorRole::kKey:
      return NameInLayer(layer, "self_attn.k_proj.weight");
    case TensorRole::kValue:
      return NameInLayer(layer, "self_attn.v_proj.weight");
    case TensorRole::kQueryBias:
      return NameInLayer(layer, "self_attn.q_proj.bias");
    case TensorRole::kKeyBias:
      return NameInLayer(layer, "self_attn.k_proj.bias");
    case TensorRole::kValueBias:
      return NameInLayer(layer, "self_attn.v_proj.bias");
    case TensorRole::kAttentionOutputBias:
      return NameInLayer(layer, "self_attn.o_proj.bias");
    case TensorRole::kSinks:
      return NameInLayer(layer, "self_attn.sinks");
    case TensorRole::kQueryNorm:
      return NameInLayer(layer, "self_attn.q_norm.weight");
    case TensorRole::kKeyNorm:
      return NameInLayer(layer, "self_attn.k_norm.weight");
    case TensorRole::kAttentionOutput:
      return NameInLayer(layer, "self_attn.o_proj.weight");
    default:
      CHECK(false);
  }
}

std::string QwenTensorName(TensorRole role, int layer, int expert) {
  const auto in_expert = [&](const char* matrix) {
    return absl::StrCat("model.layers.", layer, ".mlp.experts.", expert, ".",
                        matrix, ".weight");
  };
  switch (role) {
    case TensorRole::kRouter:
      return NameInLayer(layer, "mlp.gate.weight");
    case TensorRole::kGate:
      return NameInLayer(layer, "mlp.gate_proj.weight");
    case TensorRole::kUp:
      return NameInLayer(layer, "mlp.up_proj.weight");
    case TensorRole::kDown:
      return NameInLayer(layer, "mlp.down_proj.weight");
    case TensorRole::kExpertGate:
      return in_expert("gate_proj");
    case TensorRole::kExpertUp:
      return in_expert("up_proj");
    case TensorRole::kExpertDown:
      return in_expert("down_proj");
    default:
      return DenseTensorName(role, layer);
  }
}

}  // namespace moebius
