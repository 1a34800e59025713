// The families of models: what a config.json and the names of tensors mean.
// Each is a file of its own here, and nothing else knows families.
#pragma once

#include <memory>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "common/config/json_keys.h"
#include "common/config/model_config.h"
#include "worker/model/decoder_spec.h"
#include "worker/model/tensor_names.h"
#include "worker/model/tensor_source.h"

namespace moebius {

using AdaptTensors = std::unique_ptr<TensorSource> (*)(
    std::unique_ptr<TensorSource> checkpoint, const DecoderSpec& spec);

struct ModelFamily {
  std::string_view architecture;  // as config.json spells it
  std::string_view model_type;    // likewise
  // Reads everything but what `config` says already, strictly: a value that
  // changes what is computed and that the family does not know is refused.
  absl::StatusOr<DecoderSpec> (*read)(const JsonKeys& keys,
                                      const ModelConfig& config);
  TensorNames names;
  // Null: the checkpoint's tensors are those of `names`. Else what makes them
  // of the checkpoint's.
  AdaptTensors adapt = nullptr;
};

// One for each of kServedArchitectures.
absl::Span<const ModelFamily> ModelFamilies();

// A checkpoint's model, before any weight is read.
struct Model {
  DecoderSpec spec;
  TensorNames names = nullptr;
  AdaptTensors adapt = nullptr;
};

// The tensors of a model out of its checkpoint's.
std::unique_ptr<TensorSource> TensorsOf(
    AdaptTensors adapt, const DecoderSpec& spec,
    std::unique_ptr<TensorSource> checkpoint);

// Errors: kInvalidArgument that names `file_name`, the key and what is allowed.
absl::StatusOr<Model> ParseModel(std::string_view json,
                                 std::string_view file_name);
// Reads DIR/config.json.
absl::StatusOr<Model> LoadModel(const std::string& model_dir);

}  // namespace moebius
