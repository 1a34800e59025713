#include "worker/model/families/json_terms.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "common/base/status_macros.h"

namespace moebius {

absl::StatusOr<DecoderSpec> ReadSizes(const JsonKeys& keys,
                                      const ModelConfig& config,
                                      double norm_eps) {
  DecoderSpec spec;
  spec.vocab_size = config.vocab_size;
  spec.max_positions = config.max_positions;
  ASSIGN_OR_RETURN(spec.hidden_size,
                   keys.Integer("hidden_size", 1, kMaxHidden));
  ASSIGN_OR_RETURN(spec.norm_eps,
                   keys.Number("rms_norm_eps", 1e-12, 1.0, norm_eps));
  ASSIGN_OR_RETURN(spec.tied_embedding,
                   keys.Bool("tie_word_embeddings", false));
  return spec;
}

absl::StatusOr<int> ReadTopK(const JsonKeys& keys, const ModelConfig& config) {
  return keys.Integer(
      "num_experts_per_tok", 1,
      std::min<int64_t>(config.num_experts, kMaxExpertsOfToken));
}

absl::StatusOr<GroupedQueryAttention> ReadHeads(const JsonKeys& keys,
                                                const ModelConfig& config,
                                                int hidden_size) {
  GroupedQueryAttention attention;
  attention.q_heads = config.num_q_heads;
  attention.kv_heads = config.num_kv_heads;
  ASSIGN_OR_RETURN(attention.head_dim, ReadHeadDim(keys, config, hidden_size));
  return attention;
}

absl::Status OnlyFullAttention(const JsonKeys& keys) {
  const JsonKeys::Json* types = keys.Find("layer_types");
  if (types == nullptr) return absl::OkStatus();
  const bool full =
      types->is_array() &&
      std::all_of(types->begin(), types->end(), [](const JsonKeys::Json& type) {
        return type == "full_attention";
      });
  if (full) return absl::OkStatus();
  return keys.Error("layer_types",
                    "not supported; allowed: a list of \"full_attention\"");
}

absl::StatusOr<int> ReadHeadDim(const JsonKeys& keys, const ModelConfig& config,
                                int hidden_size) {
  if (keys.Find("head_dim") == nullptr &&
      hidden_size % config.num_q_heads != 0) {
    return keys.Error(
        "head_dim",
        absl::StrCat("missing, and hidden_size ", hidden_size,
                     " has no share for ", config.num_q_heads, " heads"));
  }
  ASSIGN_OR_RETURN(const int head_dim,
                   keys.Integer("head_dim", 2, kMaxHeadDim,
                                hidden_size / config.num_q_heads));
  if (head_dim < 2 || head_dim > kMaxHeadDim || head_dim % 2 != 0) {
    return keys.Error("head_dim", absl::StrCat(head_dim,
                                               " is not an even number from 2 "
                                               "to ",
                                               kMaxHeadDim));
  }
  return head_dim;
}

absl::StatusOr<RotarySpec> ReadRotary(const JsonKeys& keys, int head_dim,
                                      double theta) {
  RotarySpec rotary;
  rotary.dims = head_dim;
  ASSIGN_OR_RETURN(rotary.theta, keys.Number("rope_theta", 1.0, 1e12, theta));
  for (const char* name : {"rope_scaling", "rope_parameters"}) {
    ASSIGN_OR_RETURN(const std::optional<JsonKeys> rope, keys.Object(name));
    if (!rope.has_value()) continue;
    RETURN_IF_ERROR(rope->Only("type", "default"));
    RETURN_IF_ERROR(rope->Only("rope_type", "default"));
    ASSIGN_OR_RETURN(rotary.theta,
                     rope->Number("rope_theta", 1.0, 1e12, rotary.theta));
    ASSIGN_OR_RETURN(const double partial,
                     rope->Number("partial_rotary_factor", 0.0, 1.0, 1.0));
    if (partial != 1.0) {
      return rope->Error(
          "partial_rotary_factor",
          absl::StrCat(partial, " is not supported; allowed: 1"));
    }
  }
  return rotary;
}

absl::StatusOr<ActivationSpec> ReadActivation(const JsonKeys& keys) {
  RETURN_IF_ERROR(keys.Only("hidden_act", "silu"));
  return SwiGlu{};
}

}  // namespace moebius
