// Typed reading of a JSON file whose errors name file and key.
#pragma once

#include <simdjson.h>

#include <initializer_list>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/base/cat.h"

namespace moebius {

// A string of a file as it may stand in a message: escaped, in quotes, cut
// when long.
std::string QuotedForMessage(std::string_view text);

// JsonReader
//
// Reads parsed values (simdjson's document model) as the type that is wanted.
// `key` is always the path of the value, for messages; every error is
// kInvalidArgument and reads "<file>: <key>: <reason>".
//
// A value. Threading: thread-compatible.
class JsonReader {
 public:
  using Element = simdjson::dom::element;
  using Array = simdjson::dom::array;
  using Object = simdjson::dom::object;

  explicit JsonReader(std::string_view name) : name_(name) {}

  const std::string& name() const { return name_; }

  template <typename... Parts>
  absl::Status Error(std::string_view key, const Parts&... parts) const {
    return absl::InvalidArgumentError(Cat(name_, ": ", key, ": ", parts...));
  }

  absl::StatusOr<Object> AsObject(Element element, std::string_view key) const;
  absl::StatusOr<Array> AsArray(Element element, std::string_view key) const;
  absl::StatusOr<std::string_view> AsString(Element element,
                                            std::string_view key) const;

  // A member that must be there.
  absl::StatusOr<Element> Require(Object object, std::string_view member,
                                  std::string_view key) const;
  // A flag, or `fallback` if it is not there.
  absl::StatusOr<bool> BoolOr(Object object, std::string_view member,
                              std::string_view key, bool fallback) const;
  // The string "type", which must be there.
  absl::StatusOr<std::string_view> Type(Object object,
                                        std::string_view key) const;

  // Refuses members that are not among `known` (32 at most), and one that is
  // there twice.
  absl::Status OnlyMembers(Object object, std::string_view key,
                           std::initializer_list<std::string_view> known) const;
  // Refuses `member` unless it is absent, null, false, 0 or "".
  absl::Status OnlyEmpty(Object object, std::string_view member,
                         std::string_view key) const;

 private:
  absl::StatusOr<bool> AsBool(Element element, std::string_view key) const;

  std::string name_;
};

}  // namespace moebius
