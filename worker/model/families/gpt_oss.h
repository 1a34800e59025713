// gpt-oss (OpenAI 2025, arXiv 2508.10925; transformers, GptOssConfig).
#pragma once

#include <string>

#include "absl/status/statusor.h"
#include "common/config/json_keys.h"
#include "common/config/model_config.h"
#include "worker/model/decoder_spec.h"
#include "worker/model/tensor_names.h"

namespace moebius {

// See ModelFamily in families.h.
absl::StatusOr<DecoderSpec> ReadGptOss(const JsonKeys& keys,
                                       const ModelConfig& config);
std::string GptOssTensorName(TensorRole role, int layer, int expert);

}  // namespace moebius
