#include "coordinator/api/generation_defaults.h"

#include <algorithm>
#include <limits>

#include "common/base/cat.h"
#include "common/base/files.h"
#include "common/base/status_macros.h"
#include "coordinator/api/json_input.h"
#include "coordinator/api/python_json.h"
#include "coordinator/api/request_fields.h"

namespace moebius {
namespace {

constexpr size_t kMaxFileBytes = 1 << 20;
constexpr int kMaxId = std::numeric_limits<int32_t>::max();

// The keys of a file. What cannot be is noted as a warning and left out.
class Keys {
 public:
  Keys(const Json& object, std::string_view file,
       std::vector<std::string>* warnings)
      : object_(object), file_(file), warnings_(warnings) {}

  void Number(std::string_view key, FieldReader::Range range,
              std::optional<float>* out) {
    FieldReader fields(object_);
    fields.Number(key, range, out);
    WarnOf(fields);
  }

  void Integer(std::string_view key, int low, std::optional<int>* out) {
    FieldReader fields(object_);
    std::optional<int64_t> number;
    fields.Int(key, low, kMaxId, &number);
    WarnOf(fields);
    if (number) *out = static_cast<int>(*number);
  }

  // Of a list, those that are token ids.
  void Ids(std::string_view key, std::vector<int32_t>* out) {
    FieldReader fields(object_);
    const Json* value = fields.Find(key);
    if (value == nullptr) return;
    const Json list = value->is_array() ? *value : Json::array({*value});
    for (const Json& item : list) {
      const std::optional<int32_t> id = AsTokenId(item, kMaxId);
      if (id && out->size() < kMaxEosIds) {
        out->push_back(*id);
      } else {
        fields.Fail(key, Cat("a token id or a list of at most ", kMaxEosIds),
                    &item);
      }
    }
    WarnOf(fields);
  }

 private:
  void WarnOf(const FieldReader& fields) {
    if (!fields.error()) return;
    warnings_->push_back(
        Cat(file_, ": ", fields.error()->message, "; passed over"));
  }

  const Json& object_;
  std::string_view file_;
  std::vector<std::string>* warnings_;
};

// Python, which writes these files, reads more than JSON.
absl::StatusOr<Json> ParseObject(std::string_view json, std::string_view file,
                                 std::vector<std::string>* warnings) {
  auto parsed = ParseJson(json);
  if (!parsed.ok()) {
    const std::string why = Cat(file, ": ", parsed.status().message());
    auto python = ParsePythonJson(json);
    if (!python.has_value()) return absl::InvalidArgumentError(why);
    warnings->push_back(Cat(why, "; read as Python does"));
    parsed = *std::move(python);
  }
  if (!parsed->is_object()) {
    return absl::InvalidArgumentError(Cat(file, ": must be a JSON object"));
  }
  return parsed;
}

}  // namespace

absl::StatusOr<GenerationDefaults> ParseGenerationConfig(
    std::string_view json, std::string_view file_name) {
  GenerationDefaults out;
  ASSIGN_OR_RETURN(const Json object,
                   ParseObject(json, file_name, &out.warnings));
  Keys keys(object, file_name, &out.warnings);
  keys.Number("temperature", {.high = 100}, &out.temperature);
  keys.Number("top_p", {.high = 1, .open_low = true}, &out.top_p);
  keys.Number("min_p", {.high = 1}, &out.min_p);
  keys.Number("repetition_penalty", {.high = 100, .open_low = true},
              &out.repetition_penalty);
  keys.Integer("top_k", -1, &out.top_k);
  keys.Integer("max_new_tokens", 1, &out.max_new_tokens);
  keys.Ids("eos_token_id", &out.eos_ids);
  if (out.top_k && *out.top_k < 0) out.top_k = 0;
  return out;
}

absl::StatusOr<GenerationDefaults> LoadGenerationDefaults(
    const std::string& model_dir) {
  GenerationDefaults out;
  const std::string path = Cat(model_dir, "/generation_config.json");
  auto text = ReadFile(path, kMaxFileBytes);
  if (text.ok()) {
    ASSIGN_OR_RETURN(out, ParseGenerationConfig(*text, path));
  } else if (!absl::IsNotFound(text.status())) {
    return text.status();
  }
  if (out.eos_ids.empty()) {
    const std::string config_path = Cat(model_dir, "/config.json");
    ASSIGN_OR_RETURN(const std::string config,
                     ReadFile(config_path, kMaxFileBytes));
    ASSIGN_OR_RETURN(const Json object,
                     ParseObject(config, config_path, &out.warnings));
    Keys(object, config_path, &out.warnings).Ids("eos_token_id", &out.eos_ids);
  }
  return out;
}

void AddEnd(std::optional<int32_t> id, GenerationDefaults* defaults) {
  std::vector<int32_t>& ids = defaults->eos_ids;
  if (!id.has_value() || ids.size() >= kMaxEosIds ||
      std::find(ids.begin(), ids.end(), *id) != ids.end()) {
    return;
  }
  ids.push_back(*id);
}

}  // namespace moebius
