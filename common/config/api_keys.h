// API keys: the secrets that clients of a listener show, and the files that
// they are in.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"

namespace moebius {

// ApiKeys
//
// The keys of one file, one a line. A line that begins with '#' is a comment,
// an empty one is passed over. A key has kMinKeyBytes to kMaxKeyBytes printable
// ASCII characters without spaces.
//
// Contains() takes the same time whichever key is shown and however much of it
// is right: it pads what is shown to the longest key there may be and compares
// all of it with every key, without a branch on what it finds. Only the number
// of keys and the length of what is shown, which the client knows, count.
//
// Errors name file and line and what is allowed there, never what is there.
// Threading: immutable.
class ApiKeys {
 public:
  static constexpr int kMaxKeys = 1024;
  static constexpr size_t kMinKeyBytes = 16;
  static constexpr size_t kMaxKeyBytes = 256;
  static constexpr size_t kMaxFileBytes = size_t{1} << 20;

  // Reads a regular file that is ours or root's and that nobody else may read
  // or write (a symbolic link to one will do).
  // Errors: kNotFound, kInvalidArgument.
  static absl::StatusOr<ApiKeys> Load(const std::string& path);

  // `text` is a file's, `file_name` what messages call it.
  static absl::StatusOr<ApiKeys> Parse(std::string_view text,
                                       std::string_view file_name);

  bool Contains(std::string_view shown) const;

  int size() const { return static_cast<int>(keys_.size()); }
  // The first of the file: the one that a client shows.
  std::string First() const;

 private:
  // The key, zeros behind it, and its length.
  using Padded = std::array<uint64_t, kMaxKeyBytes / 8 + 1>;
  static Padded Pad(std::string_view key);

  std::vector<Padded> keys_;
};

// Whether `key` may be sent in a header: 1 to kMaxKeyBytes printable characters
// without spaces.
bool IsSendableKey(std::string_view key);

}  // namespace moebius
