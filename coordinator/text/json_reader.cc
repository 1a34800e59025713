#include "coordinator/text/json_reader.h"

#include <cstdint>

#include "absl/strings/escaping.h"
#include "common/base/status_macros.h"

namespace moebius {
namespace {

using Element = JsonReader::Element;
using Array = JsonReader::Array;
using Object = JsonReader::Object;

constexpr size_t kMaxQuotedBytes = 60;

}  // namespace

std::string QuotedForMessage(std::string_view text) {
  const bool cut = text.size() > kMaxQuotedBytes;
  return Cat("\"", absl::CHexEscape(AbslView(text.substr(0, kMaxQuotedBytes))),
             cut ? "...\"" : "\"");
}

absl::StatusOr<Object> JsonReader::AsObject(Element element,
                                            std::string_view key) const {
  Object object;
  if (element.get(object) != simdjson::SUCCESS) {
    return Error(key, "must be an object");
  }
  return object;
}

absl::StatusOr<Array> JsonReader::AsArray(Element element,
                                          std::string_view key) const {
  Array array;
  if (element.get(array) != simdjson::SUCCESS) {
    return Error(key, "must be a list");
  }
  return array;
}

absl::StatusOr<std::string_view> JsonReader::AsString(
    Element element, std::string_view key) const {
  std::string_view text;
  if (element.get(text) != simdjson::SUCCESS) {
    return Error(key, "must be a string");
  }
  return text;
}

absl::StatusOr<bool> JsonReader::AsBool(Element element,
                                        std::string_view key) const {
  bool value;
  if (element.get(value) != simdjson::SUCCESS) {
    return Error(key, "must be true or false");
  }
  return value;
}

absl::StatusOr<Element> JsonReader::Require(Object object,
                                            std::string_view member,
                                            std::string_view key) const {
  Element element;
  if (object[member].get(element) != simdjson::SUCCESS) {
    return Error(key, "lacks \"", member, "\"");
  }
  return element;
}

absl::StatusOr<bool> JsonReader::BoolOr(Object object, std::string_view member,
                                        std::string_view key,
                                        bool fallback) const {
  Element element;
  if (object[member].get(element) != simdjson::SUCCESS) return fallback;
  return AsBool(element, Cat(key, ".", member));
}

absl::StatusOr<std::string_view> JsonReader::Type(Object object,
                                                  std::string_view key) const {
  ASSIGN_OR_RETURN(const Element type, Require(object, "type", key));
  return AsString(type, Cat(key, ".type"));
}

absl::Status JsonReader::OnlyMembers(
    Object object, std::string_view key,
    std::initializer_list<std::string_view> known) const {
  uint32_t seen = 0;
  for (const auto member : object) {
    uint32_t bit = 1;
    bool found = false;
    for (const std::string_view name : known) {
      if (member.key == name) {
        if (seen & bit)
          return Error(key, QuotedForMessage(name), " is there twice");
        seen |= bit;
        found = true;
        break;
      }
      bit <<= 1;
    }
    if (!found) {
      std::string supported;
      for (const std::string_view name : known) {
        supported += Cat(supported.empty() ? "" : ", ", name);
      }
      return Error(key, QuotedForMessage(member.key),
                   " is not known; supported: ", supported);
    }
  }
  return absl::OkStatus();
}

absl::Status JsonReader::OnlyEmpty(Object object, std::string_view member,
                                   std::string_view key) const {
  Element element;
  if (object[member].get(element) != simdjson::SUCCESS) {
    return absl::OkStatus();
  }
  std::string_view text;
  bool flag;
  double number;
  if (element.is_null() ||
      (element.get(text) == simdjson::SUCCESS && text.empty()) ||
      (element.get(flag) == simdjson::SUCCESS && !flag) ||
      (element.get(number) == simdjson::SUCCESS && number == 0)) {
    return absl::OkStatus();
  }
  return Error(Cat(key, ".", member),
               "is not supported; supported is only null");
}

}  // namespace moebius
