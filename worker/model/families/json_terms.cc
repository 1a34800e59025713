#include "worker/model/families/json_terms.h"

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "absl/strings/str_cat.h"
#include "common/base/status_macros.h"

namespace moebius {

namespace {

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

}  // namespace

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

absl::Status OnlyMoeLayers(const JsonKeys& keys, const ModelConfig& config,
                           const char* key) {
  if (config.num_moe_layers() == static_cast<int>(config.is_moe_layer.size())) {
    return absl::OkStatus();
  }
  return keys.Error(key, "every layer must have experts; allowed: at least 1");
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

namespace {

constexpr double kMaxScalingFactor = 1e4;

// Of cos and sin (arXiv 2309.00071, section 3.4).
double AttentionFactor(double factor, double mscale) {
  return factor <= 1.0 ? 1.0 : 0.1 * mscale * std::log(factor) + 1.0;
}

absl::StatusOr<YarnScaling> ReadYarn(const JsonKeys& keys,
                                     const JsonKeys& rope) {
  YarnScaling yarn;
  ASSIGN_OR_RETURN(yarn.factor,
                   rope.Number("factor", 1.0, kMaxScalingFactor, 1.0));
  ASSIGN_OR_RETURN(const int positions,
                   keys.Integer("max_position_embeddings", 1, INT32_MAX));
  ASSIGN_OR_RETURN(yarn.original_positions,
                   rope.Integer("original_max_position_embeddings", 1,
                                INT32_MAX, positions));
  ASSIGN_OR_RETURN(yarn.beta_fast, rope.Number("beta_fast", 1e-3, 1e6, 32.0));
  ASSIGN_OR_RETURN(yarn.beta_slow, rope.Number("beta_slow", 1e-3, 1e6, 1.0));
  ASSIGN_OR_RETURN(yarn.truncate, rope.Bool("truncate", true));
  ASSIGN_OR_RETURN(const double mscale, rope.Number("mscale", 0.0, 1e3, 0.0));
  ASSIGN_OR_RETURN(const double mscale_all_dim,
                   rope.Number("mscale_all_dim", 0.0, 1e3, 0.0));
  const double by_default =
      mscale > 0.0 && mscale_all_dim > 0.0
          ? AttentionFactor(yarn.factor, mscale) /
                AttentionFactor(yarn.factor, mscale_all_dim)
          : AttentionFactor(yarn.factor, 1.0);
  ASSIGN_OR_RETURN(yarn.attention_factor,
                   rope.Number("attention_factor", 1e-3, 1e3, by_default));
  return yarn;
}

// "type" in files older than "rope_type".
absl::Status ReadScaling(const JsonKeys& keys, const JsonKeys& rope,
                         RotarySpec& rotary) {
  for (const char* name : {"type", "rope_type"}) {
    const JsonKeys::Json* type = rope.Find(name);
    if (type == nullptr || *type == "default") continue;
    if (*type == "yarn") {
      ASSIGN_OR_RETURN(rotary.scaling, ReadYarn(keys, rope));
    } else if (*type == "linear") {
      LinearScaling linear;
      ASSIGN_OR_RETURN(linear.factor,
                       rope.Number("factor", 1.0, kMaxScalingFactor, 1.0));
      rotary.scaling = linear;
    } else {
      return rope.Error(name,
                        absl::StrCat(JsonKeys::Show(*type),
                                     " is not supported; allowed: \"default\", "
                                     "\"linear\" or \"yarn\""));
    }
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<RotarySpec> ReadRotary(const JsonKeys& keys, int head_dim,
                                      double theta) {
  RotarySpec rotary;
  rotary.dims = head_dim;
  ASSIGN_OR_RETURN(rotary.theta, keys.Number("rope_theta", 1.0, 1e12, theta));
  for (const char* name : {"rope_scaling", "rope_parameters"}) {
    ASSIGN_OR_RETURN(const std::optional<JsonKeys> rope, keys.Object(name));
    if (!rope.has_value()) continue;
    RETURN_IF_ERROR(ReadScaling(keys, *rope, rotary));
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

absl::Status AddLayers(const JsonKeys& keys, const ModelConfig& config,
                       LayerSpec layer, const std::optional<MoeMlp>& moe,
                       std::vector<LayerSpec>& layers) {
  DenseMlp dense;
  ASSIGN_OR_RETURN(dense.activation, ReadActivation(keys));
  const bool all_moe =
      config.num_moe_layers() == static_cast<int>(config.is_moe_layer.size());
  ASSIGN_OR_RETURN(
      dense.rows, keys.Integer("intermediate_size", 1, kMaxIntermediate,
                               all_moe ? std::optional<int>(0) : std::nullopt));
  for (const bool is_moe : config.is_moe_layer) {
    if (is_moe) {
      layer.mlp = *moe;
    } else {
      layer.mlp = dense;
    }
    layers.push_back(layer);
  }
  return absl::OkStatus();
}

}  // namespace moebius
