// Finding the added tokens of a tokenizer file in text.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/functional/function_ref.h"
#include "absl/status/status.h"

namespace moebius {

// One entry of `added_tokens`.
struct AddedToken {
  int32_t id = 0;
  std::string content;       // not empty
  bool single_word = false;  // only where no word character is beside it
  bool lstrip = false;       // takes the white space before it along
  bool rstrip = false;       // takes the white space behind it along
  bool normalized = false;   // sought after normalisation, not before
  bool special = false;      // left out by Decode(skip_special)
};

// AddedTokenMatcher
//
// Cuts text at the added tokens in it: leftmost first, the longest of several
// at one place. A token that fails its single_word condition, or a special one
// while they are not parsed, is passed over whole: no shorter token is sought
// inside of it. (So does the Hugging Face library.)
//
// Cost: linear in the text for texts without long common prefixes of tokens;
// at most text times longest token.
//
// Threading: thread-safe; constant after construction.
class AddedTokenMatcher {
 public:
  // No token; every text is one piece.
  AddedTokenMatcher() = default;

  // Of tokens with equal contents the first counts.
  // REQUIRES: contents not empty.
  explicit AddedTokenMatcher(std::vector<AddedToken> tokens);

  // Calls `piece(text, token)` for each piece in order, with the token whose
  // occurrence the piece is, or nullptr for text between. No piece is empty
  // but that of a token whose every character an earlier rstrip took. Stops
  // at the first error and returns it.
  //
  // REQUIRES: valid UTF-8.
  absl::Status Split(
      std::string_view text, bool parse_special,
      absl::FunctionRef<absl::Status(std::string_view, const AddedToken*)>
          piece) const;

 private:
  // The longest token that begins at text[at], or nullptr.
  const AddedToken* LongestAt(std::string_view text, size_t at) const;

  std::vector<AddedToken> tokens_;
  // A trie: edges_[node << 8 | byte] is the child; node 0 is the root.
  absl::flat_hash_map<uint64_t, uint32_t> edges_;
  std::vector<int32_t> token_of_node_;  // index into tokens_, -1: none
  bool starts_[256] = {};               // bytes that begin a token
};

}  // namespace moebius
