// Mixtral (Jiang et al. 2024, arXiv 2401.04088; transformers, MixtralConfig).
#pragma once

#include <string>

#include "absl/status/statusor.h"
#include "common/config/json_keys.h"
#include "common/config/model_config.h"
#include "worker/model/decoder_spec.h"
#include "worker/model/tensor_names.h"

namespace moebius {

// See ModelFamily in families.h.
absl::StatusOr<DecoderSpec> ReadMixtral(const JsonKeys& keys,
                                        const ModelConfig& config);
std::string MixtralTensorName(TensorRole role, int layer, int expert);

}  // namespace moebius
