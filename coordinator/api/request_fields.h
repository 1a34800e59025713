// Reads the fields of a JSON object and remembers the first that is wrong.
// Pure.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "coordinator/api/json_input.h"
#include "coordinator/http/api_error.h"

namespace moebius {

// FieldReader
//
// Each method reads one field into `*out` and leaves it alone when the field
// is missing, null or wrong. After the first error all do nothing.
//
//   FieldReader fields(object);
//   fields.Number("top_p", {.low = 0, .open_low = true, .high = 1}, &top_p);
//   if (fields.error()) return *fields.error();
class FieldReader {
 public:
  struct Range {
    double low = 0;
    double high = 0;
    bool open_low = false;  // `low` itself is not allowed
  };

  // `path` stands before the names of fields in errors ("stream_options.").
  explicit FieldReader(const Json& object, std::string path = "")
      : object_(object), path_(std::move(path)) {}

  // The value, or null if it is missing, JSON's null, or an error came before.
  const Json* Find(std::string_view name) const;

  void Bool(std::string_view name, bool* out);
  void Int(std::string_view name, int64_t low, int64_t high,
           std::optional<int64_t>* out);
  void Int(std::string_view name, int64_t low, int64_t high, int* out);
  void Number(std::string_view name, Range range, std::optional<float>* out);
  void Number(std::string_view name, Range range, float* out);
  void String(std::string_view name, size_t max_bytes, std::string* out);
  // An array of token ids below `vocab_size`.
  void TokenIds(std::string_view name, size_t max_ids, int vocab_size,
                std::vector<int32_t>* out);

  // Records "`name` must be `allowed`, got ...", if it is the first error.
  void Fail(std::string_view name, std::string_view allowed,
            const Json* got = nullptr);
  void FailWith(ApiError error);

  const std::optional<ApiError>& error() const { return error_; }

 private:
  const Json& object_;
  const std::string path_;
  std::optional<ApiError> error_;
};

// How an error speaks of a value: the value itself if it is short, else its
// type.
std::string Describe(const Json& value);

// The id, if `value` is an integer from 0 to vocab_size - 1.
std::optional<int32_t> AsTokenId(const Json& value, int vocab_size);

}  // namespace moebius
