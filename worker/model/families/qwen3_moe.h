// Qwen3-MoE (Yang et al. 2025, arXiv 2505.09388; transformers, Qwen3MoeConfig).
#pragma once

#include <string>

#include "absl/status/statusor.h"
#include "common/config/json_keys.h"
#include "common/config/model_config.h"
#include "worker/model/decoder_spec.h"
#include "worker/model/tensor_names.h"

namespace moebius {

// See ModelFamily in families.h.
absl::StatusOr<DecoderSpec> ReadQwen3Moe(const JsonKeys& keys,
                                         const ModelConfig& config);
std::string Qwen3MoeTensorName(TensorRole role, int layer, int expert);

}  // namespace moebius
