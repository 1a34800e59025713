#include "coordinator/api/request_fields.h"

#include <limits>
#include <utility>

#include "absl/strings/str_format.h"
#include "common/base/cat.h"

namespace moebius {
namespace {

constexpr size_t kMaxShownBytes = 40;

// The integer, if it is one that fits.
std::optional<int64_t> AsInt(const Json& value) {
  if (!value.is_number_integer()) return std::nullopt;
  if (value.is_number_unsigned() &&
      value.get<uint64_t>() > uint64_t{std::numeric_limits<int64_t>::max()}) {
    return std::nullopt;
  }
  return value.get<int64_t>();
}

}  // namespace

std::string Describe(const Json& value) {
  switch (value.type()) {
    case Json::value_t::null:
      return "null";
    case Json::value_t::object:
      return "an object";
    case Json::value_t::array:
      return "an array";
    case Json::value_t::string:
      if (value.get_ref<const std::string&>().size() > kMaxShownBytes) {
        return "a long string";
      }
      break;
    case Json::value_t::binary:
      return "an integer beyond 64 bits";
    default:
      break;
  }
  return value.dump();
}

std::optional<int32_t> AsTokenId(const Json& value, int vocab_size) {
  const std::optional<int64_t> id = AsInt(value);
  if (!id || *id < 0 || *id >= vocab_size) return std::nullopt;
  return static_cast<int32_t>(*id);
}

const Json* FieldReader::Find(std::string_view name) const {
  if (error_ || !object_.is_object()) return nullptr;
  for (const auto& [key, value] : object_.get_ref<const Json::object_t&>()) {
    if (key == name) return value.is_null() ? nullptr : &value;
  }
  return nullptr;
}

void FieldReader::Bool(std::string_view name, bool* out) {
  const Json* value = Find(name);
  if (value == nullptr) return;
  if (!value->is_boolean()) return Fail(name, "true or false", value);
  *out = value->get<bool>();
}

void FieldReader::Int(std::string_view name, int64_t low, int64_t high,
                      std::optional<int64_t>* out) {
  const Json* value = Find(name);
  if (value == nullptr) return;
  const std::optional<int64_t> number = AsInt(*value);
  if (!number || *number < low || *number > high) {
    return Fail(name, Cat("an integer from ", low, " to ", high), value);
  }
  *out = *number;
}

void FieldReader::Int(std::string_view name, int64_t low, int64_t high,
                      int* out) {
  std::optional<int64_t> number;
  Int(name, low, high, &number);
  if (number) *out = static_cast<int>(*number);
}

void FieldReader::Number(std::string_view name, Range range,
                         std::optional<float>* out) {
  const Json* value = Find(name);
  if (value == nullptr) return;
  const double number = value->is_number()
                            ? value->get<double>()
                            : -std::numeric_limits<double>::max();
  const bool above = range.open_low ? number > range.low : number >= range.low;
  if (!above || number > range.high) {
    const std::string allowed =
        range.open_low
            ? absl::StrFormat("a number above %g, up to %g", range.low,
                              range.high)
            : absl::StrFormat("a number from %g to %g", range.low, range.high);
    return Fail(name, allowed, value);
  }
  float result = static_cast<float>(number);
  // What rounds to the forbidden end is the smallest number above it.
  if (range.open_low && result <= static_cast<float>(range.low)) {
    result = std::numeric_limits<float>::min();
  }
  *out = result;
}

void FieldReader::Number(std::string_view name, Range range, float* out) {
  std::optional<float> number;
  Number(name, range, &number);
  if (number) *out = *number;
}

void FieldReader::String(std::string_view name, size_t max_bytes,
                         std::string* out) {
  const Json* value = Find(name);
  if (value == nullptr) return;
  const auto* text = value->get_ptr<const std::string*>();
  if (text == nullptr || text->size() > max_bytes) {
    return Fail(name, Cat("a string of at most ", max_bytes, " bytes"), value);
  }
  *out = *text;
}

void FieldReader::TokenIds(std::string_view name, size_t max_ids,
                           int vocab_size, std::vector<int32_t>* out) {
  const Json* value = Find(name);
  if (value == nullptr) return;
  const std::string allowed = Cat("a list of at most ", max_ids,
                                  " token ids from 0 to ", vocab_size - 1);
  if (!value->is_array() || value->size() > max_ids) {
    return Fail(name, allowed, value);
  }
  std::vector<int32_t> ids;
  ids.reserve(value->size());
  for (const Json& item : *value) {
    const auto id = AsTokenId(item, vocab_size);
    if (!id) return Fail(name, allowed, &item);
    ids.push_back(*id);
  }
  *out = std::move(ids);
}

void FieldReader::Fail(std::string_view name, std::string_view allowed,
                       const Json* got) {
  const std::string param = Cat(path_, name);
  std::string message = Cat("`", param, "` must be ", allowed);
  if (got != nullptr) message += Cat(", got ", Describe(*got));
  FailWith(BadField(param, std::move(message)));
}

void FieldReader::FailWith(ApiError error) {
  if (!error_) error_ = std::move(error);
}

}  // namespace moebius
