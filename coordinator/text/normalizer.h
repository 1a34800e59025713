// Unicode properties and normalisation that tokenizers need.
#pragma once

#include <string>
#include <string_view>

#include "absl/status/statusor.h"

namespace moebius {

// Normalization Form C of `text` (Unicode Standard Annex #15), by the tables
// of utf8proc. Linear in the text but for the sorting of combining marks,
// which is n log n.
//
// REQUIRES: valid UTF-8.
// Errors: kInternal if the library reports one (it has no reason to).
absl::StatusOr<std::string> NormalizeNfc(std::string_view text);

// True for characters that NFC leaves alone wherever they stand, and which
// never combine with a character before them: a text of these is in NFC.
// Answers false for some characters that would do.
bool IsInertInNfc(char32_t value);

// The property White_Space (Unicode Character Database, PropList.txt).
bool IsWhiteSpace(char32_t value);

// Word characters as of Unicode Technical Standard #18, annex C: alphabetic,
// marks, decimal digits, connector punctuation, join controls.
bool IsWordCharacter(char32_t value);

}  // namespace moebius
