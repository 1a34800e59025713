#include "common/base/printable.h"

#include <cstdint>

namespace moebius {
namespace {

// A character of UTF-8, or one byte that is none.
struct Character {
  size_t size_bytes = 1;
  bool valid = false;
  char32_t value = 0;
};

// REQUIRES: `text` is not empty.
Character First(std::string_view text) {
  const auto byte = [&](size_t i) { return static_cast<uint8_t>(text[i]); };
  const uint8_t lead = byte(0);
  if (lead < 0x80) return {1, true, lead};
  const size_t size = lead >= 0xf0 ? 4 : lead >= 0xe0 ? 3 : 2;
  if (lead < 0xc2 || lead > 0xf4 || size > text.size()) return {};
  char32_t value = lead & (0x7f >> size);
  for (size_t i = 1; i < size; ++i) {
    if ((byte(i) & 0xc0) != 0x80) return {};
    value = value << 6 | (byte(i) & 0x3f);
  }
  const bool overlong =
      (size == 3 && value < 0x800) || (size == 4 && value < 0x10000);
  const bool surrogate = value >= 0xd800 && value <= 0xdfff;
  if (overlong || surrogate || value > 0x10ffff) return {};
  return {size, true, value};
}

bool IsHarmless(char32_t c) {
  if (c < 0x20 || (c >= 0x7f && c < 0xa0)) return false;
  // Marks, embeddings, overrides and isolates of the bidirectional algorithm
  // (Unicode Standard Annex 9), line and paragraph separator.
  return c != 0x61c && c != 0x200e && c != 0x200f &&
         !(c >= 0x2028 && c <= 0x202e) && !(c >= 0x2066 && c <= 0x2069);
}

void AppendHex(uint32_t value, int digits, std::string& out) {
  constexpr char kHex[] = "0123456789abcdef";
  for (int shift = 4 * (digits - 1); shift >= 0; shift -= 4) {
    out += kHex[value >> shift & 15];
  }
}

std::string Escaped(const Character& character, uint8_t byte) {
  std::string out;
  if (character.valid && character.value == '\n') return "\\n";
  if (character.valid && character.value == '\r') return "\\r";
  if (character.valid && character.value == '\t') return "\\t";
  if (character.valid && character.value >= 0x80) {
    out = "\\u";
    AppendHex(static_cast<uint32_t>(character.value), 4, out);
  } else {
    out = "\\x";
    AppendHex(byte, 2, out);
  }
  return out;
}

std::string MakePrintable(std::string_view text, size_t max_bytes,
                          std::string_view kept) {
  std::string out;
  while (!text.empty()) {
    const Character character = First(text);
    const bool keep = character.valid && (IsHarmless(character.value) ||
                                          kept.find(text[0]) != kept.npos);
    const std::string piece =
        keep ? std::string(text.substr(0, character.size_bytes))
             : Escaped(character, static_cast<uint8_t>(text[0]));
    if (piece.size() > max_bytes - out.size()) return out + "...";
    out += piece;
    text.remove_prefix(character.size_bytes);
  }
  return out;
}

}  // namespace

std::string Printable(std::string_view text, size_t max_bytes) {
  return MakePrintable(text, max_bytes, "");
}

std::string PrintableLines(std::string_view text) {
  return MakePrintable(text, std::string::npos, "\n\t");
}

}  // namespace moebius
