// OLMoE (Muennighoff et al. 2024, arXiv 2409.02060; transformers, OlmoeConfig).
#pragma once

#include <string>

#include "absl/status/statusor.h"
#include "common/config/json_keys.h"
#include "common/config/model_config.h"
#include "worker/model/decoder_spec.h"
#include "worker/model/tensor_names.h"

namespace moebius {

// See ModelFamily in families.h.
absl::StatusOr<DecoderSpec> ReadOlmoe(const JsonKeys& keys,
                                      const ModelConfig& config);
std::string OlmoeTensorName(TensorRole role, int layer, int expert);

}  // namespace moebius
