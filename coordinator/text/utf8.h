// UTF-8 as bytes arrive: validation, replacement, and reading of code points
// from text already known to be valid.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace moebius {

// U+FFFD REPLACEMENT CHARACTER.
inline constexpr std::string_view kReplacementCharacter = "\xEF\xBF\xBD";

// Utf8Repairer
//
// Turns any sequence of bytes, given in pieces, into valid UTF-8. Each
// maximal subpart of an ill-formed sequence becomes one U+FFFD (The Unicode
// Standard, section 3.9, "U+FFFD Substitution of Maximal Subparts"; the same
// as Rust's String::from_utf8_lossy and the WHATWG decoder). The result does
// not depend on how the bytes were cut into pieces.
//
// A value of a few bytes. Threading: thread-compatible.
class Utf8Repairer {
 public:
  // Appends to `out` all that `bytes` decides. An incomplete character at the
  // end (3 bytes at most) is held back until more bytes decide it.
  void Append(std::string_view bytes, std::string* out);

  // Ends the text: a character held back becomes one U+FFFD. Ready for a new
  // text afterwards.
  void Flush(std::string* out);

 private:
  uint8_t held_[4] = {};
  uint8_t size_ = 0;    // bytes held
  uint8_t wanted_ = 0;  // bytes of the character that held_[0] begins
};

// True if `text` is valid UTF-8.
bool IsValidUtf8(std::string_view text);

// `text` with every ill-formed sequence replaced as by Utf8Repairer.
std::string RepairUtf8(std::string_view text);

struct CodePoint {
  char32_t value;
  int size_bytes;
};

// The code point at `p`. REQUIRES: p points at the first byte of a character
// of valid UTF-8.
inline CodePoint ReadCodePoint(const char* p) {
  const auto byte = [p](int i) {
    return static_cast<char32_t>(static_cast<uint8_t>(p[i]));
  };
  const char32_t lead = byte(0);
  if (lead < 0x80) return {lead, 1};
  if (lead < 0xE0) return {(lead & 0x1F) << 6 | (byte(1) & 0x3F), 2};
  if (lead < 0xF0) {
    return {(lead & 0x0F) << 12 | (byte(1) & 0x3F) << 6 | (byte(2) & 0x3F), 3};
  }
  return {(lead & 0x07) << 18 | (byte(1) & 0x3F) << 12 | (byte(2) & 0x3F) << 6 |
              (byte(3) & 0x3F),
          4};
}

// The start of the character that ends just before text[end]. REQUIRES: valid
// UTF-8, end > 0 at a boundary.
inline size_t PreviousCharacter(std::string_view text, size_t end) {
  do {
    --end;
  } while (end > 0 && (static_cast<uint8_t>(text[end]) & 0xC0) == 0x80);
  return end;
}

// Appends `value` in UTF-8. REQUIRES: a Unicode scalar value.
void AppendUtf8(char32_t value, std::string* out);

}  // namespace moebius
