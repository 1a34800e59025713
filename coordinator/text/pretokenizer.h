// Cutting text into words with the split patterns of a tokenizer file.
#pragma once

#include <memory>
#include <string>
#include <string_view>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace moebius {

// The pattern of GPT-2's pre-tokenizer, which the ByteLevel step of a
// tokenizer file means by `use_regex: true`. Written from its description:
// English contractions; letters, digits or other marks with a space before
// them; blanks, but for the last one before a word.
inline constexpr std::string_view kGpt2SplitPattern =
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+)"
    R"(|\s+(?!\S)|\s+)";

// A longer pattern is refused.
inline constexpr size_t kMaxSplitPatternBytes = 16 * 1024;

// SplitPattern
//
// One compiled split pattern, behaviour "Isolated": matches are pieces, and so
// is the text between them.
//
// Tokenizer files are written for Oniguruma (Ruby's syntax, Unicode); here
// PCRE2 executes them. Compile() accepts the constructs that both give the
// same meaning, or that it can translate, and refuses the others: \s and \S
// become the White_Space property (PCRE2 would add U+180E), \v one vertical
// tab, \uHHHH a code point, \p{Name} that is no general category a script.
// Refused are anchors and \b, \w, \h and others that differ, back-references,
// \S or a nested class inside of a class, named groups, verbs.
//
// Threading: thread-safe; constant after Compile().
class SplitPattern {
 public:
  // Errors: kInvalidArgument with the place and the reason.
  static absl::StatusOr<std::unique_ptr<SplitPattern>> Compile(
      std::string_view pattern);

  virtual ~SplitPattern() = default;

  // Calls `piece` for each piece of `text` in order; their concatenation is
  // `text`, none is empty. Stops at the first error of `piece` and returns it.
  //
  // REQUIRES: valid UTF-8.
  // Errors: kResourceExhausted when a match exceeds the limits on work or
  // memory; pieces before it have been reported.
  virtual absl::Status Split(
      std::string_view text,
      absl::FunctionRef<absl::Status(std::string_view)> piece) const = 0;
};

// `pattern` in PCRE2's syntax, as described above. Exposed for tests.
absl::StatusOr<std::string> TranslateSplitPattern(std::string_view pattern);

}  // namespace moebius
