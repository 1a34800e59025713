#include "worker/model/families/mixtral.h"

#include <cstdint>

#include "absl/strings/str_cat.h"
#include "common/base/status_macros.h"
#include "worker/model/families/dense_names.h"
#include "worker/model/families/json_terms.h"

namespace moebius {
namespace {

// The router's softmax is of all logits, and the weights of the chosen ones add
// up to 1.
absl::StatusOr<MoeMlp> ReadMoe(const JsonKeys& keys,
                               const ModelConfig& config) {
  RETURN_IF_ERROR(OnlyMoeLayers(keys, config, "num_local_experts"));
  MoeMlp moe;
  ASSIGN_OR_RETURN(moe.activation, ReadActivation(keys));
  moe.router.num_experts = config.num_experts;
  moe.router.renormalize = true;
  ASSIGN_OR_RETURN(moe.router.top_k, ReadTopK(keys, config));
  ASSIGN_OR_RETURN(moe.rows,
                   keys.Integer("intermediate_size", 1, kMaxIntermediate));
  return moe;
}

std::string InExpert(int layer, int expert, const char* matrix) {
  return absl::StrCat("model.layers.", layer, ".block_sparse_moe.experts.",
                      expert, ".", matrix, ".weight");
}

}  // namespace

absl::StatusOr<DecoderSpec> ReadMixtral(const JsonKeys& keys,
                                        const ModelConfig& config) {
  ASSIGN_OR_RETURN(DecoderSpec spec, ReadSizes(keys, config, 1e-5));
  ASSIGN_OR_RETURN(GroupedQueryAttention attention,
                   ReadHeads(keys, config, spec.hidden_size));
  RETURN_IF_ERROR(OnlyFullAttention(keys));
  ASSIGN_OR_RETURN(attention.window,
                   keys.Integer("sliding_window", 1, INT32_MAX, 0));
  ASSIGN_OR_RETURN(const RotarySpec rotary,
                   ReadRotary(keys, attention.head_dim, 1e6));
  ASSIGN_OR_RETURN(const MoeMlp moe, ReadMoe(keys, config));
  spec.layers.assign(config.is_moe_layer.size(), {attention, rotary, moe});
  return spec;
}

std::string MixtralTensorName(TensorRole role, int layer, int expert) {
  switch (role) {
    case TensorRole::kRouter:
      return NameInLayer(layer, "block_sparse_moe.gate.weight");
    case TensorRole::kExpertGate:
      return InExpert(layer, expert, "w1");
    case TensorRole::kExpertUp:
      return InExpert(layer, expert, "w3");
    case TensorRole::kExpertDown:
      return InExpert(layer, expert, "w2");
    default:
      return DenseTensorName(role, layer);
  }
}

}  // namespace moebius
