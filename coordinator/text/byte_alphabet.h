// The byte-level alphabet: the spelling that vocabularies of byte-level BPE
// give to bytes.
#pragma once

#include <optional>
#include <string>
#include <string_view>

namespace moebius {

// Each of the 256 bytes is spelled as one character: bytes that are printable
// in Latin-1 (0x21-0x7E, 0xA1-0xAC, 0xAE-0xFF) as themselves, the other 68 in
// rising order as U+0100, U+0101, ... (Radford et al., GPT-2, encoder.py,
// bytes_to_unicode). So a space is U+0120.

// The bytes that `spelling` stands for, or nullopt if it has a character
// outside the alphabet. REQUIRES: valid UTF-8.
std::optional<std::string> BytesFromSpelling(std::string_view spelling);

// The spelling of `bytes`, in UTF-8.
std::string SpellingFromBytes(std::string_view bytes);

}  // namespace moebius
