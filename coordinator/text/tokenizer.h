// Text to token ids and back: byte-level BPE read from a tokenizer.json.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "coordinator/text/added_tokens.h"
#include "coordinator/text/bpe.h"
#include "coordinator/text/pretokenizer.h"
#include "coordinator/text/tokenizer_file.h"

namespace moebius {

// A longer text is refused.
inline constexpr size_t kMaxEncodeBytes = 16 << 20;

struct EncodeOptions {
  // Special tokens in the text ("<|im_end|>") become their ids. If false they
  // are text like any other. Added tokens that are not special are found
  // either way.
  bool parse_special = true;
};

// Tokenizer
//
// The pipeline of Qwen-family tokenizers; tokenizer_file.h says what of a file
// is supported. Ids are those of the Hugging Face tokenizers library with
// add_special_tokens=false. One difference in decoding: an added token that is
// not in the vocabulary always stands for its content, also where that could be
// read as a spelling of bytes (the library makes "caf" and byte 0xE9 of
// "café").
//
// Threading: thread-safe; all methods are const and take no lock.
class Tokenizer {
 public:
  // Errors: kNotFound if there is no such file; kInvalidArgument, naming file,
  // key and reason, for one that is malformed or unsupported.
  static absl::StatusOr<std::unique_ptr<Tokenizer>> Load(
      const std::string& path);

  // The same from the contents. `name` stands for the file in messages.
  static absl::StatusOr<std::unique_ptr<Tokenizer>> FromJson(
      std::string_view json, std::string_view name);

  // The ids of `text`. Ill-formed UTF-8 is replaced by U+FFFD first (as by
  // RepairUtf8); the Hugging Face binding never sees any, since a Python str
  // cannot hold it.
  //
  // Errors: kInvalidArgument if longer than kMaxEncodeBytes;
  // kResourceExhausted if a split pattern exceeds its bounds on the text.
  absl::StatusOr<std::vector<int32_t>> Encode(std::string_view text,
                                              EncodeOptions options = {}) const;

  // The text of `ids`, valid UTF-8: bytes that form no character become
  // U+FFFD. Ids that no token has stand for nothing (a model's padded
  // vocabulary has such).
  std::string Decode(absl::Span<const int32_t> ids, bool skip_special) const;

  // The bytes of one token, which need not be valid UTF-8 alone. Empty for an
  // id that no token has. Valid while the tokenizer lives.
  std::string_view TokenBytes(int32_t id) const {
    return InRange(id) ? std::string_view(file_.tokens[id])
                       : std::string_view();
  }

  // True for added tokens that are marked special.
  bool IsSpecial(int32_t id) const { return InRange(id) && special_[id]; }

  // One more than the highest id of a token.
  int32_t vocab_size() const {
    return static_cast<int32_t>(file_.tokens.size());
  }

  // The id of the added token with this content or else of the vocabulary
  // token with these bytes, as TokenBytes() gives them (" the", not "Ġthe").
  std::optional<int32_t> TokenId(std::string_view token) const;

 private:
  explicit Tokenizer(TokenizerFile file);

  absl::Status Initialize();
  bool InRange(int32_t id) const {
    return id >= 0 && id < static_cast<int32_t>(file_.tokens.size());
  }
  // Appends the ids of text without added tokens, cut by the patterns from
  // `split` on.
  absl::Status EncodeOrdinary(std::string_view text, size_t split,
                              std::vector<int32_t>* ids) const;
  // Text in which the tokens sought before normalisation have been found.
  absl::Status EncodeUnnormalized(std::string_view text, bool parse_special,
                                  std::vector<int32_t>* ids) const;

  TokenizerFile file_;
  BpeModel bpe_;
  std::vector<std::unique_ptr<SplitPattern>> splits_;
  AddedTokenMatcher raw_matcher_;         // tokens sought in the text as given
  AddedTokenMatcher normalized_matcher_;  // tokens sought after NFC
  std::vector<bool> special_;             // by id
};

}  // namespace moebius
