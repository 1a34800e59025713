// The families of models: what a config.json and the names of tensors mean.
// Each is a file of its own here, and nothing else knows families.
#pragma once

#include <string>
#include <string_view>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "common/config/json_keys.h"
#include "common/config/model_config.h"
#include "worker/model/decoder_spec.h"
#include "worker/model/tensor_names.h"

namespace moebius {

struct ModelFamily {
  std::string_view architecture;  // as config.json spells it
  std::string_view model_type;    // likewise
  // Reads everything but what `config` says already, strictly: a value that
  // changes what is computed and that the family does not know is refused.
  absl::StatusOr<DecoderSpec> (*read)(const JsonKeys& keys,
                                      const ModelConfig& config);
  TensorNames names;
};

// One for each of kServedArchitectures.
absl::Span<const ModelFamily> ModelFamilies();

// A checkpoint's model, before any weight is read.
struct Model {
  DecoderSpec spec;
  TensorNames names = nullptr;
};

// Errors: kInvalidArgument that names `file_name`, the key and what is allowed.
absl::StatusOr<Model> ParseModel(std::string_view json,
                                 std::string_view file_name);
// Reads DIR/config.json.
absl::StatusOr<Model> LoadModel(const std::string& model_dir);

}  // namespace moebius
