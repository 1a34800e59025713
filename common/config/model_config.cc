#include "common/config/model_config.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <iterator>
#include <limits>
#include <optional>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "common/base/files.h"
#include "common/base/status_macros.h"
#include "nlohmann/json.hpp"

namespace moebius {
namespace {

using Json = nlohmann::json;

constexpr std::string_view kArchitecture = "Qwen3MoeForCausalLM";
constexpr std::string_view kModelType = "qwen3_moe";

// Far above any published model; small enough that the product of any three
// sizes, in bytes, fits in 64 bits.
constexpr int64_t kMaxHidden = 1 << 16;
constexpr int64_t kMaxLayers = 1024;
constexpr int64_t kMaxHeads = 1024;
constexpr int64_t kMaxHeadDim = 1024;
constexpr int64_t kMaxIntermediate = 1 << 20;
constexpr int64_t kMaxExperts = 4096;
constexpr int64_t kMaxExpertsPerToken = 64;
constexpr int64_t kMaxVocab = 1 << 20;
constexpr int64_t kMaxPositions = 1 << 24;

// The keys of one JSON object, with errors that name file and key.
class Keys {
 public:
  Keys(const Json& object, std::string_view file_name, std::string prefix = "")
      : object_(object), file_name_(file_name), prefix_(std::move(prefix)) {}

  // The value, or null when the key is absent or null.
  const Json* Find(const char* key) const {
    const auto it = object_.find(key);
    return it == object_.end() || it->is_null() ? nullptr : &*it;
  }

  absl::Status Error(const char* key, std::string_view what) const {
    return absl::InvalidArgumentError(absl::StrCat(
        std::string(file_name_), ": ", prefix_, key, ": ", std::string(what)));
  }

  // An integer in [min, max]. Without a default the key is required.
  absl::StatusOr<int> Integer(const char* key, int64_t min, int64_t max,
                              std::optional<int> if_absent = {}) const {
    const Json* value = Find(key);
    if (value == nullptr) {
      if (if_absent.has_value()) return *if_absent;
      return Error(key, absl::StrCat("missing; must be an integer from ", min,
                                     " to ", max));
    }
    if (!value->is_number_integer() || !InRange(*value, min, max)) {
      return Error(key, absl::StrCat(Show(*value), " is not an integer from ",
                                     min, " to ", max));
    }
    return static_cast<int>(value->get<int64_t>());
  }

  // A finite number in [min, max].
  absl::StatusOr<double> Number(const char* key, double min, double max,
                                double if_absent) const {
    const Json* value = Find(key);
    if (value == nullptr) return if_absent;
    const double number = value->is_number()
                              ? value->get<double>()
                              : std::numeric_limits<double>::quiet_NaN();
    if (!(number >= min && number <= max)) {
      return Error(key, absl::StrCat(Show(*value), " is not a number from ",
                                     min, " to ", max));
    }
    return number;
  }

  absl::StatusOr<bool> Bool(const char* key, bool if_absent) const {
    const Json* value = Find(key);
    if (value == nullptr) return if_absent;
    if (!value->is_boolean()) {
      return Error(key,
                   absl::StrCat(Show(*value), " is neither true nor false"));
    }
    return value->get<bool>();
  }

  // The string must be `allowed` when the key is there.
  absl::Status Only(const char* key, std::string_view allowed) const {
    const Json* value = Find(key);
    if (value == nullptr) return absl::OkStatus();
    if (!value->is_string() ||
        value->get_ref<const std::string&>() != allowed) {
      return Error(key,
                   absl::StrCat(Show(*value), " is not supported; allowed: \"",
                                std::string(allowed), "\""));
    }
    return absl::OkStatus();
  }

  // A short rendering of a value for a message.
  static std::string Show(const Json& value) {
    if (value.is_object()) return "an object";
    if (value.is_array()) return "a list";
    std::string text =
        value.dump(-1, ' ', true, Json::error_handler_t::replace);
    if (text.size() > 64) text = absl::StrCat(text.substr(0, 61), "...");
    return text;
  }

 private:
  static bool InRange(const Json& value, int64_t min, int64_t max) {
    if (value.is_number_unsigned()) {
      const uint64_t number = value.get<uint64_t>();
      return number <= static_cast<uint64_t>(max) &&
             static_cast<int64_t>(number) >= min;
    }
    const int64_t number = value.get<int64_t>();
    return number >= min && number <= max;
  }

  const Json& object_;
  std::string_view file_name_;
  std::string prefix_;
};

// Rotary embedding as older files spell it (rope_theta, rope_scaling) and as
// newer ones do (rope_parameters).
absl::Status ReadRope(const Keys& keys, std::string_view file_name,
                      ModelConfig& config) {
  ASSIGN_OR_RETURN(config.rope_theta,
                   keys.Number("rope_theta", 1.0, 1e12, 10000.0));
  for (const char* name : {"rope_scaling", "rope_parameters"}) {
    const Json* value = keys.Find(name);
    if (value == nullptr) continue;
    if (!value->is_object()) {
      return keys.Error(name, absl::StrCat(Keys::Show(*value),
                                           " is neither null nor an object"));
    }
    const Keys rope(*value, file_name, absl::StrCat(name, "."));
    RETURN_IF_ERROR(rope.Only("type", "default"));
    RETURN_IF_ERROR(rope.Only("rope_type", "default"));
    ASSIGN_OR_RETURN(config.rope_theta,
                     rope.Number("rope_theta", 1.0, 1e12, config.rope_theta));
    ASSIGN_OR_RETURN(const double partial,
                     rope.Number("partial_rotary_factor", 0.0, 1.0, 1.0));
    if (partial != 1.0) {
      return rope.Error("partial_rotary_factor",
                        absl::StrCat(partial, " is not supported; allowed: 1"));
    }
  }
  return absl::OkStatus();
}

// Qwen3-MoE: layer l has experts unless mlp_only_layers names it, there are
// none, or (l + 1) is no multiple of decoder_sparse_step.
absl::Status ReadLayerKinds(const Keys& keys, ModelConfig& config) {
  ASSIGN_OR_RETURN(const int step,
                   keys.Integer("decoder_sparse_step", 1, kMaxLayers, 1));
  config.is_moe_layer.assign(config.num_layers, false);
  for (int layer = 0; layer < config.num_layers; ++layer) {
    config.is_moe_layer[layer] =
        config.num_experts > 0 && (layer + 1) % step == 0;
  }
  const Json* dense = keys.Find("mlp_only_layers");
  if (dense == nullptr) return absl::OkStatus();
  if (!dense->is_array()) {
    return keys.Error("mlp_only_layers",
                      absl::StrCat(Keys::Show(*dense), " is not a list"));
  }
  if (dense->size() > static_cast<size_t>(kMaxLayers)) {
    return keys.Error("mlp_only_layers",
                      absl::StrCat("more than ", kMaxLayers, " entries"));
  }
  for (const Json& entry : *dense) {
    const bool valid =
        entry.is_number_integer() && entry >= 0 && entry < config.num_layers;
    if (!valid) {
      return keys.Error(
          "mlp_only_layers",
          absl::StrCat(Keys::Show(entry), " is not a layer; allowed: 0 to ",
                       config.num_layers - 1));
    }
    config.is_moe_layer[entry.get<int>()] = false;
  }
  return absl::OkStatus();
}

absl::Status CheckArchitecture(const Keys& keys, ModelConfig& config) {
  const Json* names = keys.Find("architectures");
  if (names == nullptr || !names->is_array() || names->size() != 1 ||
      !(*names)[0].is_string() ||
      (*names)[0].get_ref<const std::string&>() != kArchitecture) {
    const std::string given =
        names == nullptr ? "missing"
        : names->is_array() && names->size() == 1
            ? absl::StrCat(Keys::Show((*names)[0]), " is not supported")
            : absl::StrCat(Keys::Show(*names), " is not supported");
    return keys.Error("architectures",
                      absl::StrCat(given, "; allowed: [\"",
                                   std::string(kArchitecture), "\"]"));
  }
  config.architecture = std::string(kArchitecture);
  RETURN_IF_ERROR(keys.Only("model_type", kModelType));
  RETURN_IF_ERROR(keys.Only("hidden_act", "silu"));
  for (const char* key : {"attention_bias", "use_sliding_window"}) {
    ASSIGN_OR_RETURN(const bool value, keys.Bool(key, false));
    if (value) {
      return keys.Error(key, "true is not supported; allowed: false");
    }
  }
  if (keys.Find("quantization_config") != nullptr) {
    return keys.Error("quantization_config",
                      "quantised weights are not supported; allowed: null");
  }
  return absl::OkStatus();
}

// Under the name that Qwen3MoeConfig writes since transformers 5, or under the
// older one (its attribute_map makes them one).
absl::Status ReadNumExperts(const Keys& keys, ModelConfig& config) {
  if (keys.Find("num_local_experts") == nullptr) {
    ASSIGN_OR_RETURN(config.num_experts,
                     keys.Integer("num_experts", 0, kMaxExperts));
    return absl::OkStatus();
  }
  ASSIGN_OR_RETURN(config.num_experts,
                   keys.Integer("num_local_experts", 0, kMaxExperts));
  ASSIGN_OR_RETURN(const int other, keys.Integer("num_experts", 0, kMaxExperts,
                                                 config.num_experts));
  if (other == config.num_experts) return absl::OkStatus();
  return keys.Error("num_experts",
                    absl::StrCat(other, " is not what num_local_experts says, ",
                                 config.num_experts));
}

absl::Status ReadExperts(const Keys& keys, ModelConfig& config) {
  RETURN_IF_ERROR(ReadNumExperts(keys, config));
  if (config.num_experts == 0) return absl::OkStatus();
  ASSIGN_OR_RETURN(
      config.experts_per_token,
      keys.Integer("num_experts_per_tok", 1,
                   std::min<int64_t>(config.num_experts, kMaxExpertsPerToken)));
  ASSIGN_OR_RETURN(config.moe_intermediate_size,
                   keys.Integer("moe_intermediate_size", 1, kMaxIntermediate));
  return absl::OkStatus();
}

absl::Status ReadAttention(const Keys& keys, ModelConfig& config) {
  ASSIGN_OR_RETURN(config.num_q_heads,
                   keys.Integer("num_attention_heads", 1, kMaxHeads));
  ASSIGN_OR_RETURN(config.num_kv_heads,
                   keys.Integer("num_key_value_heads", 1, config.num_q_heads));
  if (config.num_q_heads % config.num_kv_heads != 0) {
    return keys.Error(
        "num_key_value_heads",
        absl::StrCat(config.num_kv_heads, " does not divide the ",
                     config.num_q_heads, " heads of num_attention_heads"));
  }
  if (keys.Find("head_dim") == nullptr &&
      config.hidden_size % config.num_q_heads != 0) {
    return keys.Error(
        "head_dim",
        absl::StrCat("missing, and hidden_size ", config.hidden_size,
                     " has no share for ", config.num_q_heads, " heads"));
  }
  ASSIGN_OR_RETURN(config.head_dim,
                   keys.Integer("head_dim", 2, kMaxHeadDim,
                                config.hidden_size / config.num_q_heads));
  if (config.head_dim < 2 || config.head_dim > kMaxHeadDim ||
      config.head_dim % 2 != 0) {
    return keys.Error(
        "head_dim",
        absl::StrCat(config.head_dim, " is not an even number from 2 to ",
                     kMaxHeadDim));
  }
  return absl::OkStatus();
}

}  // namespace

int ModelConfig::num_moe_layers() const {
  return static_cast<int>(
      std::count(is_moe_layer.begin(), is_moe_layer.end(), true));
}

absl::StatusOr<ModelConfig> ParseModelConfig(std::string_view json,
                                             std::string_view file_name) {
  if (json.size() > kMaxModelConfigBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat(std::string(file_name), ": ", json.size(),
                     " bytes; allowed: at most ", kMaxModelConfigBytes));
  }
  const Json document = Json::parse(json, nullptr, /*allow_exceptions=*/false);
  if (document.is_discarded()) {
    return absl::InvalidArgumentError(
        absl::StrCat(std::string(file_name), ": not valid JSON"));
  }
  if (!document.is_object()) {
    return absl::InvalidArgumentError(
        absl::StrCat(std::string(file_name), ": not a JSON object"));
  }
  const Keys keys(document, file_name);
  ModelConfig config;
  RETURN_IF_ERROR(CheckArchitecture(keys, config));
  ASSIGN_OR_RETURN(config.hidden_size,
                   keys.Integer("hidden_size", 1, kMaxHidden));
  ASSIGN_OR_RETURN(config.num_layers,
                   keys.Integer("num_hidden_layers", 1, kMaxLayers));
  RETURN_IF_ERROR(ReadAttention(keys, config));
  RETURN_IF_ERROR(ReadExperts(keys, config));
  RETURN_IF_ERROR(ReadLayerKinds(keys, config));
  // Only dense layers have this size.
  const bool all_moe = config.num_moe_layers() == config.num_layers;
  ASSIGN_OR_RETURN(
      config.intermediate_size,
      keys.Integer("intermediate_size", 1, kMaxIntermediate,
                   all_moe ? std::optional<int>(0) : std::nullopt));
  ASSIGN_OR_RETURN(config.norm_topk_prob, keys.Bool("norm_topk_prob", false));
  ASSIGN_OR_RETURN(config.tie_word_embeddings,
                   keys.Bool("tie_word_embeddings", false));
  ASSIGN_OR_RETURN(config.vocab_size, keys.Integer("vocab_size", 1, kMaxVocab));
  ASSIGN_OR_RETURN(config.max_positions,
                   keys.Integer("max_position_embeddings", 1, kMaxPositions));
  ASSIGN_OR_RETURN(config.rms_norm_eps,
                   keys.Number("rms_norm_eps", 1e-12, 1.0, 1e-6));
  RETURN_IF_ERROR(ReadRope(keys, file_name, config));
  return config;
}

absl::StatusOr<ModelConfig> LoadModelConfig(const std::string& model_dir) {
  const std::string path = absl::StrCat(model_dir, "/config.json");
  ASSIGN_OR_RETURN(const std::string text,
                   ReadFile(path, kMaxModelConfigBytes));
  return ParseModelConfig(text, path);
}

}  // namespace moebius
