// The contents of a tokenizer.json (Hugging Face tokenizers, version "1.0"),
// read and checked.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "coordinator/text/added_tokens.h"
#include "coordinator/text/bpe.h"

namespace moebius {

// Bounds on a tokenizer file.
inline constexpr int64_t kMaxTokenizerFileBytes = int64_t{256} << 20;
inline constexpr int32_t kMaxVocabSize = 1 << 20;
inline constexpr size_t kMaxAddedTokens = 1 << 16;
inline constexpr size_t kMaxAddedTokenBytes = 1024;
inline constexpr size_t kMaxSplits = 16;

struct TokenizerFile {
  TokenizerFile() = default;
  TokenizerFile(TokenizerFile&&) = default;  // `ids` looks into `tokens`
  TokenizerFile& operator=(TokenizerFile&&) = default;

  // By id: the bytes of each token. An id that no token has is empty.
  std::vector<std::string> tokens;
  // Vocabulary tokens spelled in the byte-level alphabet, by their bytes; the
  // keys are views of `tokens`. Others cannot come out of merging.
  BytesToId ids;
  std::array<int32_t, 256> byte_tokens = {};
  std::vector<BpeMerge> merges;
  bool ignore_merges = false;
  std::vector<AddedToken> added_tokens;
  bool nfc = false;
  // Applied in order, each to the pieces of the one before.
  std::vector<std::string> split_patterns;
};

// Parses `json`. `name` begins the message of every error, which goes on with
// the key at fault and what is supported. Accepted are:
//
//   normalizer      null, NFC, Sequence of these
//   pre_tokenizer   ByteLevel, or Sequence of Split(Regex, Isolated, not
//                   inverted) with one ByteLevel last; add_prefix_space false
//   model           BPE with all 256 byte tokens, merges as "a b" or
//                   ["a","b"]; without dropout, byte_fallback, subword prefix
//                   or suffix; unk_token is accepted, as nothing is unknown
//   decoder         ByteLevel
//   post_processor  null, ByteLevel, Sequence of these, TemplateProcessing
//                   that adds no token
//   truncation, padding  not read: requests decide lengths
//
// Keys outside of these are errors, except for `trim_offsets` and the like
// that change no token. Ids are below kMaxVocabSize and may have gaps.
//
// Errors: kInvalidArgument.
absl::StatusOr<TokenizerFile> ParseTokenizerFile(std::string_view json,
                                                 std::string_view name);

}  // namespace moebius
