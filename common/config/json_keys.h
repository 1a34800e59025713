// The keys of one object of a JSON file, with errors that name file and key.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "nlohmann/json.hpp"

namespace moebius {

// JsonKeys
//
// A key that is null is absent. All errors are kInvalidArgument:
// "FILE: KEY: what is there, and what is allowed".
//
// REQUIRES: the object and the file's name outlive it.
class JsonKeys {
 public:
  using Json = nlohmann::json;

  // `prefix` stands before each key in messages: "rope_scaling.".
  JsonKeys(const Json& object, std::string_view file_name,
           std::string_view prefix = "");

  // The value, or null when the key is absent or null.
  const Json* Find(const char* key) const;

  absl::Status Error(const char* key, std::string_view what) const;

  // An integer in [min, max]. Without a default the key is required.
  absl::StatusOr<int> Integer(const char* key, int64_t min, int64_t max,
                              std::optional<int> if_absent = {}) const;
  // A finite number in [min, max].
  absl::StatusOr<double> Number(const char* key, double min, double max,
                                double if_absent) const;
  absl::StatusOr<bool> Bool(const char* key, bool if_absent) const;
  // The string must be `allowed` when the key is there.
  absl::Status Only(const char* key, std::string_view allowed) const;
  // The truth value must be false when the key is there.
  absl::Status OnlyFalse(const char* key) const;

  // The keys of the object under `key`, if it is there.
  absl::StatusOr<std::optional<JsonKeys>> Object(const char* key) const;

  // A short rendering of a value for a message.
  static std::string Show(const Json& value);

 private:
  const Json* object_;
  std::string_view file_name_;
  std::string prefix_;
};

// The object that a file of at most `max_bytes` must be.
// Errors: kInvalidArgument that names the file.
absl::StatusOr<nlohmann::json> ParseJsonObject(std::string_view json,
                                               std::string_view file_name,
                                               size_t max_bytes);

}  // namespace moebius
