// Qwen2-MoE (Yang et al. 2024, arXiv 2407.10671; transformers, Qwen2MoeConfig).
#pragma once

#include <string>

#include "absl/status/statusor.h"
#include "common/config/json_keys.h"
#include "common/config/model_config.h"
#include "worker/model/decoder_spec.h"
#include "worker/model/tensor_names.h"

namespace moebius {

// See ModelFamily in families.h.
absl::StatusOr<DecoderSpec> ReadQwen2Moe(const JsonKeys& keys,
                                         const ModelConfig& config);
std::string Qwen2MoeTensorName(TensorRole role, int layer, int expert);

}  // namespace moebius
