#include "coordinator/api/generation_defaults.h"

#include <filesystem>
#include <fstream>
#include <limits>
#include <sstream>
#include <system_error>

#include "common/cat.h"
#include "common/status_macros.h"
#include "coordinator/api/json_input.h"

namespace moebius {
namespace {

constexpr uintmax_t kMaxFileBytes = 1 << 20;
constexpr int kMaxId = std::numeric_limits<int32_t>::max();

absl::Status Bad(std::string_view file, std::string_view key,
                 std::string_view allowed) {
  return absl::InvalidArgumentError(
      Cat(file, ": \"", key, "\" must be ", allowed));
}

absl::Status ReadNumber(const Json& object, std::string_view file,
                        const char* key, double low, double high,
                        std::string_view allowed, std::optional<float>* out) {
  const auto it = object.find(key);
  if (it == object.end() || it->is_null()) return absl::OkStatus();
  if (!it->is_number()) return Bad(file, key, allowed);
  const double value = it->get<double>();
  if (!(value >= low && value <= high)) return Bad(file, key, allowed);
  *out = static_cast<float>(value);
  return absl::OkStatus();
}

absl::Status ReadInteger(const Json& object, std::string_view file,
                         const char* key, int64_t low,
                         std::optional<int>* out) {
  const auto it = object.find(key);
  if (it == object.end() || it->is_null()) return absl::OkStatus();
  const std::string allowed = Cat("an integer of at least ", low);
  if (!it->is_number_integer()) return Bad(file, key, allowed);
  if (it->is_number_unsigned() && it->get<uint64_t>() > uint64_t{kMaxId}) {
    return Bad(file, key, Cat("an integer up to ", kMaxId));
  }
  const int64_t value = it->get<int64_t>();
  if (value < low) return Bad(file, key, allowed);
  *out = static_cast<int>(value);
  return absl::OkStatus();
}

absl::Status ReadIds(const Json& object, std::string_view file, const char* key,
                     std::vector<int32_t>* out) {
  const auto it = object.find(key);
  if (it == object.end() || it->is_null()) return absl::OkStatus();
  const Json list = it->is_array() ? *it : Json::array({*it});
  std::vector<int32_t> ids;
  for (const Json& id : list) {
    if (!id.is_number_unsigned() || id.get<uint64_t>() > uint64_t{kMaxId} ||
        ids.size() == kMaxEosIds) {
      return Bad(file, key,
                 Cat("a token id or a list of at most ", kMaxEosIds));
    }
    ids.push_back(id.get<int32_t>());
  }
  *out = std::move(ids);
  return absl::OkStatus();
}

absl::StatusOr<Json> ParseObject(std::string_view json, std::string_view file) {
  auto parsed = ParseJson(json);
  if (!parsed.ok()) {
    return absl::InvalidArgumentError(
        Cat(file, ": ", parsed.status().message()));
  }
  if (!parsed->is_object()) {
    return absl::InvalidArgumentError(Cat(file, ": must be a JSON object"));
  }
  return parsed;
}

// kNotFound if there is no such file.
absl::StatusOr<std::string> ReadSmallFile(const std::string& path) {
  std::error_code error;
  const auto size = std::filesystem::file_size(path, error);
  if (error == std::errc::no_such_file_or_directory) {
    return absl::NotFoundError(Cat(path, ": no such file"));
  }
  if (error) {
    return absl::UnavailableError(Cat(path, ": ", error.message()));
  }
  if (size > kMaxFileBytes) {
    return absl::InvalidArgumentError(
        Cat(path, ": larger than ", kMaxFileBytes, " bytes"));
  }
  std::ifstream file(path, std::ios::binary);
  std::ostringstream text;
  text << file.rdbuf();
  if (!file) {
    return absl::UnavailableError(Cat(path, ": cannot be read"));
  }
  return std::move(text).str();
}

}  // namespace

absl::StatusOr<GenerationDefaults> ParseGenerationConfig(
    std::string_view json, std::string_view file_name) {
  ASSIGN_OR_RETURN(const Json object, ParseObject(json, file_name));
  GenerationDefaults out;
  const float tiny = std::numeric_limits<float>::min();
  RETURN_IF_ERROR(ReadNumber(object, file_name, "temperature", 0, 100,
                             "a number from 0 to 100", &out.temperature));
  RETURN_IF_ERROR(ReadNumber(object, file_name, "top_p", tiny, 1,
                             "a number above 0, up to 1", &out.top_p));
  RETURN_IF_ERROR(ReadNumber(object, file_name, "min_p", 0, 1,
                             "a number from 0 to 1", &out.min_p));
  RETURN_IF_ERROR(ReadNumber(object, file_name, "repetition_penalty", tiny, 100,
                             "a number above 0, up to 100",
                             &out.repetition_penalty));
  RETURN_IF_ERROR(ReadInteger(object, file_name, "top_k", -1, &out.top_k));
  RETURN_IF_ERROR(
      ReadInteger(object, file_name, "max_new_tokens", 1, &out.max_new_tokens));
  RETURN_IF_ERROR(ReadIds(object, file_name, "eos_token_id", &out.eos_ids));
  if (out.top_k && *out.top_k < 0) out.top_k = 0;
  return out;
}

absl::StatusOr<GenerationDefaults> LoadGenerationDefaults(
    const std::string& model_dir) {
  GenerationDefaults out;
  const std::string path = Cat(model_dir, "/generation_config.json");
  auto text = ReadSmallFile(path);
  if (text.ok()) {
    ASSIGN_OR_RETURN(out, ParseGenerationConfig(*text, path));
  } else if (!absl::IsNotFound(text.status())) {
    return text.status();
  }
  if (out.eos_ids.empty()) {
    const std::string config_path = Cat(model_dir, "/config.json");
    ASSIGN_OR_RETURN(const std::string config, ReadSmallFile(config_path));
    ASSIGN_OR_RETURN(const Json object, ParseObject(config, config_path));
    RETURN_IF_ERROR(ReadIds(object, config_path, "eos_token_id", &out.eos_ids));
  }
  return out;
}

}  // namespace moebius
