// What several families spell alike in a config.json, and the bounds of sizes.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "absl/status/statusor.h"
#include "common/config/json_keys.h"
#include "common/config/model_config.h"
#include "worker/model/decoder_spec.h"

namespace moebius {

// Far above any published model; small enough that the product of any three
// sizes, in bytes, fits in 64 bits. (Layers, experts, heads, vocabulary and
// positions are bounded by ParseModelConfig.)
inline constexpr int64_t kMaxHidden = 1 << 16;
inline constexpr int64_t kMaxHeadDim = 1024;
inline constexpr int64_t kMaxIntermediate = 1 << 20;
inline constexpr int64_t kMaxExpertsOfToken = 64;

// Everything of a decoder but its layers. `norm_eps` is what an absent
// rms_norm_eps means.
absl::StatusOr<DecoderSpec> ReadSizes(const JsonKeys& keys,
                                      const ModelConfig& config,
                                      double norm_eps);

// num_experts_per_tok of config.num_experts.
absl::StatusOr<int> ReadTopK(const JsonKeys& keys, const ModelConfig& config);

// Heads of grouped queries, without anything else. head_dim is an even number;
// hidden_size / num_attention_heads when it is absent.
absl::StatusOr<GroupedQueryAttention> ReadHeads(const JsonKeys& keys,
                                                const ModelConfig& config,
                                                int hidden_size);

// Every layer must have experts, whose number is under `key`.
absl::Status OnlyMoeLayers(const JsonKeys& keys, const ModelConfig& config,
                           const char* key);

// layer_types: all of them "full_attention", where the key is there.
absl::Status OnlyFullAttention(const JsonKeys& keys);

// Rotary embedding of whole heads, as it is or scaled ("linear", "yarn"), as
// older files spell it (rope_theta, rope_scaling) and as newer ones do
// (rope_parameters). `theta` is what an absent rope_theta means.
absl::StatusOr<RotarySpec> ReadRotary(const JsonKeys& keys, int head_dim,
                                      double theta = 10000.0);

// hidden_act, which must be "silu" when it is there.
absl::StatusOr<ActivationSpec> ReadActivation(const JsonKeys& keys);

// The layers of a model in which some have experts and the others a dense MLP
// of intermediate_size rows, which may be absent where all have experts: each
// is `layer` but for its MLP. REQUIRES: moe, if any layer has experts.
absl::Status AddLayers(const JsonKeys& keys, const ModelConfig& config,
                       LayerSpec layer, const std::optional<MoeMlp>& moe,
                       std::vector<LayerSpec>& layers);

}  // namespace moebius
