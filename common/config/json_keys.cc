#include "common/config/json_keys.h"

#include <limits>

#include "absl/strings/str_cat.h"
#include "common/base/cat.h"
#include "common/base/status_macros.h"

namespace moebius {
namespace {

bool InRange(const nlohmann::json& value, int64_t min, int64_t max) {
  if (value.is_number_unsigned()) {
    const uint64_t number = value.get<uint64_t>();
    return number <= static_cast<uint64_t>(max) &&
           static_cast<int64_t>(number) >= min;
  }
  const int64_t number = value.get<int64_t>();
  return number >= min && number <= max;
}

}  // namespace

JsonKeys::JsonKeys(const Json& object, std::string_view file_name,
                   std::string_view prefix)
    : object_(&object), file_name_(file_name), prefix_(prefix) {}

const JsonKeys::Json* JsonKeys::Find(const char* key) const {
  const auto it = object_->find(key);
  return it == object_->end() || it->is_null() ? nullptr : &*it;
}

absl::Status JsonKeys::Error(const char* key, std::string_view what) const {
  return absl::InvalidArgumentError(
      Cat(file_name_, ": ", prefix_, key, ": ", what));
}

absl::StatusOr<int> JsonKeys::Integer(const char* key, int64_t min, int64_t max,
                                      std::optional<int> if_absent) const {
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

absl::StatusOr<double> JsonKeys::Number(const char* key, double min, double max,
                                        double if_absent) const {
  const Json* value = Find(key);
  if (value == nullptr) return if_absent;
  const double number = value->is_number()
                            ? value->get<double>()
                            : std::numeric_limits<double>::quiet_NaN();
  if (!(number >= min && number <= max)) {
    return Error(key, absl::StrCat(Show(*value), " is not a number from ", min,
                                   " to ", max));
  }
  return number;
}

absl::StatusOr<bool> JsonKeys::Bool(const char* key, bool if_absent) const {
  const Json* value = Find(key);
  if (value == nullptr) return if_absent;
  if (!value->is_boolean()) {
    return Error(key, absl::StrCat(Show(*value), " is neither true nor false"));
  }
  return value->get<bool>();
}

absl::Status JsonKeys::Only(const char* key, std::string_view allowed) const {
  const Json* value = Find(key);
  if (value == nullptr) return absl::OkStatus();
  if (!value->is_string() || value->get_ref<const std::string&>() != allowed) {
    return Error(key, Cat(Show(*value), " is not supported; allowed: \"",
                          allowed, "\""));
  }
  return absl::OkStatus();
}

absl::Status JsonKeys::OnlyFalse(const char* key) const {
  ASSIGN_OR_RETURN(const bool value, Bool(key, false));
  if (!value) return absl::OkStatus();
  return Error(key, "true is not supported; allowed: false");
}

absl::StatusOr<std::optional<JsonKeys>> JsonKeys::Object(
    const char* key) const {
  const Json* value = Find(key);
  if (value == nullptr) return std::nullopt;
  if (!value->is_object()) {
    return Error(key,
                 absl::StrCat(Show(*value), " is neither null nor an object"));
  }
  return JsonKeys(*value, file_name_, absl::StrCat(prefix_, key, "."));
}

std::string JsonKeys::Show(const Json& value) {
  if (value.is_object()) return "an object";
  if (value.is_array()) return "a list";
  std::string text = value.dump(-1, ' ', true, Json::error_handler_t::replace);
  if (text.size() > 64) text = absl::StrCat(text.substr(0, 61), "...");
  return text;
}

absl::StatusOr<nlohmann::json> ParseJsonObject(std::string_view json,
                                               std::string_view file_name,
                                               size_t max_bytes) {
  if (json.size() > max_bytes) {
    return absl::InvalidArgumentError(Cat(
        file_name, ": ", json.size(), " bytes; allowed: at most ", max_bytes));
  }
  nlohmann::json document =
      nlohmann::json::parse(json, nullptr, /*allow_exceptions=*/false);
  if (document.is_discarded()) {
    return absl::InvalidArgumentError(Cat(file_name, ": not valid JSON"));
  }
  if (!document.is_object()) {
    return absl::InvalidArgumentError(Cat(file_name, ": not a JSON object"));
  }
  return document;
}

}  // namespace moebius
