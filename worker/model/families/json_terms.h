// What several families spell alike in a config.json, and the bounds of sizes.
#pragma once

#include <cstdint>

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

// head_dim, an even number; hidden_size / num_attention_heads when it is
// absent.
absl::StatusOr<int> ReadHeadDim(const JsonKeys& keys, const ModelConfig& config,
                                int hidden_size);

// Rotary embedding of whole heads without scaling, as older files spell it
// (rope_theta, rope_scaling) and as newer ones do (rope_parameters).
absl::StatusOr<RotarySpec> ReadRotary(const JsonKeys& keys, int head_dim);

// hidden_act, which must be "silu" when it is there.
absl::StatusOr<ActivationSpec> ReadActivation(const JsonKeys& keys);

}  // namespace moebius
