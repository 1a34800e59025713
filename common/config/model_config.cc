#include "common/config/model_config.h"

#include <algorithm>
#include <cstdint>
#include <iterator>
#include <optional>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "common/base/cat.h"
#include "common/base/files.h"
#include "common/base/status_macros.h"
#include "common/config/json_keys.h"

namespace moebius {
namespace {

// Far above any published model.
constexpr int64_t kMaxLayers = 1024;
constexpr int64_t kMaxHeads = 1024;
constexpr int64_t kMaxExperts = 4096;
constexpr int64_t kMaxVocab = 1 << 20;
constexpr int64_t kMaxPositions = 1 << 24;

std::string ListOfArchitectures() {
  std::string list;
  for (const std::string_view name : kServedArchitectures) {
    list += Cat(list.empty() ? "[\"" : " or [\"", name, "\"]");
  }
  return list;
}

absl::StatusOr<std::string> ReadArchitecture(const JsonKeys& keys) {
  const JsonKeys::Json* names = keys.Find("architectures");
  const bool is_one = names != nullptr && names->is_array() &&
                      names->size() == 1 && (*names)[0].is_string();
  if (is_one) {
    const std::string& name = (*names)[0].get_ref<const std::string&>();
    if (std::count(std::begin(kServedArchitectures),
                   std::end(kServedArchitectures), name) > 0) {
      return name;
    }
  }
  const std::string given =
      names == nullptr
          ? "missing"
          : absl::StrCat(JsonKeys::Show(is_one ? (*names)[0] : *names),
                         " is not supported");
  return keys.Error("architectures",
                    absl::StrCat(given, "; allowed: ", ListOfArchitectures()));
}

absl::Status ReadHeads(const JsonKeys& keys, ModelConfig& config) {
  ASSIGN_OR_RETURN(config.num_q_heads,
                   keys.Integer("num_attention_heads", 1, kMaxHeads));
  ASSIGN_OR_RETURN(config.num_kv_heads,
                   keys.Integer("num_key_value_heads", 1, config.num_q_heads));
  if (config.num_q_heads % config.num_kv_heads == 0) return absl::OkStatus();
  return keys.Error(
      "num_key_value_heads",
      absl::StrCat(config.num_kv_heads, " does not divide the ",
                   config.num_q_heads, " heads of num_attention_heads"));
}

// Under the name that transformers writes since version 5, or under Qwen's own
// (an attribute_map makes them one).
absl::StatusOr<int> ReadNumExperts(const JsonKeys& keys) {
  if (keys.Find("num_local_experts") == nullptr) {
    return keys.Integer("num_experts", 0, kMaxExperts);
  }
  ASSIGN_OR_RETURN(const int count,
                   keys.Integer("num_local_experts", 0, kMaxExperts));
  ASSIGN_OR_RETURN(const int other,
                   keys.Integer("num_experts", 0, kMaxExperts, count));
  if (other == count) return count;
  return keys.Error(
      "num_experts",
      absl::StrCat(other, " is not what num_local_experts says, ", count));
}

// [num_layers]. A layer is a MoE one when its number, counted from 1, is a
// multiple of decoder_sparse_step, and mlp_only_layers does not name it.
absl::StatusOr<std::vector<bool>> ReadSparseLayers(const JsonKeys& keys,
                                                   int num_layers) {
  ASSIGN_OR_RETURN(const int step,
                   keys.Integer("decoder_sparse_step", 1, kMaxLayers, 1));
  std::vector<bool> sparse(static_cast<size_t>(num_layers));
  for (int layer = 0; layer < num_layers; ++layer) {
    sparse[layer] = (layer + 1) % step == 0;
  }
  const JsonKeys::Json* dense = keys.Find("mlp_only_layers");
  if (dense == nullptr) return sparse;
  if (!dense->is_array()) {
    return keys.Error("mlp_only_layers",
                      absl::StrCat(JsonKeys::Show(*dense), " is not a list"));
  }
  if (dense->size() > static_cast<size_t>(kMaxLayers)) {
    return keys.Error("mlp_only_layers",
                      absl::StrCat("more than ", kMaxLayers, " entries"));
  }
  for (const JsonKeys::Json& entry : *dense) {
    const bool valid =
        entry.is_number_integer() && entry >= 0 && entry < num_layers;
    if (!valid) {
      return keys.Error(
          "mlp_only_layers",
          absl::StrCat(JsonKeys::Show(entry), " is not a layer; allowed: 0 to ",
                       num_layers - 1));
    }
    sparse[entry.get<int>()] = false;
  }
  return sparse;
}

// Names how the weights are quantised, where the file says.
absl::Status RefuseQuantised(const JsonKeys& keys) {
  constexpr const char* kKey = "quantization_config";
  const JsonKeys::Json* found = keys.Find(kKey);
  if (found == nullptr) return absl::OkStatus();
  std::string method;
  if (found->is_object() && found->contains("quant_method")) {
    method = absl::StrCat(" (", JsonKeys::Show((*found)["quant_method"]), ")");
  }
  return keys.Error(
      kKey, absl::StrCat("quantised weights", method,
                         " are not supported, convert them to BF16; allowed: "
                         "null"));
}

// Scaled rotary embedding serves `factor` times the positions that the weights
// were trained for, whether max_position_embeddings says so or not.
absl::StatusOr<int> ReadPositions(const JsonKeys& keys) {
  ASSIGN_OR_RETURN(int positions,
                   keys.Integer("max_position_embeddings", 1, kMaxPositions));
  for (const char* name : {"rope_scaling", "rope_parameters"}) {
    ASSIGN_OR_RETURN(const std::optional<JsonKeys> rope, keys.Object(name));
    if (!rope.has_value()) continue;
    bool scaled = false;
    for (const char* key : {"type", "rope_type"}) {
      const JsonKeys::Json* type = rope->Find(key);
      scaled |= type != nullptr && (*type == "yarn" || *type == "linear");
    }
    if (!scaled) continue;
    ASSIGN_OR_RETURN(const double factor,
                     rope->Number("factor", 1.0, 1e4, 1.0));
    ASSIGN_OR_RETURN(const int original,
                     rope->Integer("original_max_position_embeddings", 1,
                                   kMaxPositions, positions));
    const double stretched = std::min<double>(factor * original, kMaxPositions);
    positions = std::max(positions, static_cast<int>(stretched));
  }
  return positions;
}

}  // namespace

int ModelConfig::num_moe_layers() const {
  return static_cast<int>(
      std::count(is_moe_layer.begin(), is_moe_layer.end(), true));
}

absl::StatusOr<ModelConfig> ParseModelConfig(std::string_view json,
                                             std::string_view file_name) {
  ASSIGN_OR_RETURN(const nlohmann::json document,
                   ParseJsonObject(json, file_name, kMaxModelConfigBytes));
  const JsonKeys keys(document, file_name);
  ModelConfig config;
  ASSIGN_OR_RETURN(config.architecture, ReadArchitecture(keys));
  RETURN_IF_ERROR(RefuseQuantised(keys));
  ASSIGN_OR_RETURN(const int num_layers,
                   keys.Integer("num_hidden_layers", 1, kMaxLayers));
  ASSIGN_OR_RETURN(config.num_experts, ReadNumExperts(keys));
  ASSIGN_OR_RETURN(config.is_moe_layer, ReadSparseLayers(keys, num_layers));
  if (config.num_experts == 0) config.is_moe_layer.assign(num_layers, false);
  RETURN_IF_ERROR(ReadHeads(keys, config));
  ASSIGN_OR_RETURN(config.vocab_size, keys.Integer("vocab_size", 1, kMaxVocab));
  ASSIGN_OR_RETURN(config.max_positions, ReadPositions(keys));
  return config;
}

absl::StatusOr<ModelConfig> LoadModelConfig(const std::string& model_dir) {
  const std::string path = absl::StrCat(model_dir, "/config.json");
  ASSIGN_OR_RETURN(const std::string text,
                   ReadFile(path, kMaxModelConfigBytes));
  return ParseModelConfig(text, path);
}

}  // namespace moebius
