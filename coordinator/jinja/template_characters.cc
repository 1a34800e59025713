#include "coordinator/jinja/template_characters.h"

#include <string.h>  // memmem
#include <utf8proc.h>

#include <algorithm>
#include <cstdio>

#include "absl/strings/ascii.h"
#include "common/base/cat.h"
#include "coordinator/text/utf8.h"

namespace moebius::jinja {
namespace {

utf8proc_category_t Category(char32_t c) {
  return utf8proc_category(static_cast<utf8proc_int32_t>(c));
}

bool IsCased(char32_t c) {
  const auto category = Category(c);
  // Feminine and masculine ordinals are letters without case that have the
  // property Lowercase.
  return (category >= UTF8PROC_CATEGORY_LU &&
          category <= UTF8PROC_CATEGORY_LT) ||
         c == 0xAA || c == 0xBA;
}

// str.isprintable() of one character: letters, marks, numbers, punctuation and
// symbols are, and the space.
bool IsPrintable(char32_t c) {
  const auto category = Category(c);
  return c == ' ' ||
         (category >= UTF8PROC_CATEGORY_LU && category <= UTF8PROC_CATEGORY_SO);
}

// Appends what `map` makes of each character.
template <typename Map>
std::string Mapped(std::string_view text, Map map) {
  std::string out;
  out.reserve(text.size());
  for (size_t at = 0; at < text.size();) {
    const CodePoint c = ReadCodePoint(text.data() + at);
    map(c.value, &out);
    at += c.size_bytes;
  }
  return out;
}

// The letters of Latin text whose upper case is several letters (of
// SpecialCasing.txt), "" for all others.
std::string_view LongUpper(char32_t c) {
  static constexpr std::string_view kLigatures[] = {"FF",  "FI", "FL", "FFI",
                                                    "FFL", "ST", "ST"};
  if (c == 0xDF) return "SS";
  return c >= 0xFB00 && c <= 0xFB06 ? kLigatures[c - 0xFB00] : "";
}

void AppendUpper(char32_t c, std::string* out) {
  if (const std::string_view upper = LongUpper(c); !upper.empty()) {
    out->append(upper);
  } else {
    AppendUtf8(utf8proc_toupper(static_cast<utf8proc_int32_t>(c)), out);
  }
}

void AppendLower(char32_t c, std::string* out) {
  AppendUtf8(utf8proc_tolower(static_cast<utf8proc_int32_t>(c)), out);
}

// The first letter in upper case, and each that follows what `separates`.
std::string Title(std::string_view text, bool (*separates)(char32_t)) {
  bool in_word = false;
  return Mapped(text, [&](char32_t c, std::string* out) {
    const std::string_view upper = LongUpper(c);
    if (in_word) {
      AppendLower(c, out);
    } else if (!upper.empty()) {
      out->append(upper, 0, 1)
          .append(absl::AsciiStrToLower(AbslView(upper)), 1);
    } else {
      AppendUtf8(utf8proc_totitle(static_cast<utf8proc_int32_t>(c)), out);
    }
    in_word = !separates(c);
  });
}

}  // namespace

size_t CountCharacters(std::string_view text) {
  return std::count_if(text.begin(), text.end(), [](char byte) {
    return (static_cast<unsigned char>(byte) & 0xC0) != 0x80;
  });
}

size_t ByteOffset(std::string_view text, size_t index) {
  size_t at = 0;
  for (; index > 0 && at < text.size(); --index) {
    at += ReadCodePoint(text.data() + at).size_bytes;
  }
  return at;
}

bool IsSpace(char32_t c) {
  if (c < 0x80) return (c >= 9 && c <= 13) || (c >= 0x1C && c <= 0x20);
  return c == 0x85 || c == 0xA0 || c == 0x1680 ||
         (c >= 0x2000 && c <= 0x200A) || c == 0x2028 || c == 0x2029 ||
         c == 0x202F || c == 0x205F || c == 0x3000;
}

bool IsAllSpace(std::string_view text) {
  return Strip(text, std::nullopt, Side::kLeft).empty();
}

std::string ToUpper(std::string_view text) { return Mapped(text, AppendUpper); }
std::string ToLower(std::string_view text) { return Mapped(text, AppendLower); }

std::string Capitalize(std::string_view text) {
  return Title(text, [](char32_t) { return false; });
}

std::string TitleWords(std::string_view text) {
  return Title(text, [](char32_t c) { return !IsCased(c); });
}

std::string TitleFilter(std::string_view text) {
  return Title(text, [](char32_t c) {
    return IsSpace(c) || c == '-' || c == '(' || c == '{' || c == '[' ||
           c == '<';
  });
}

std::string_view Strip(std::string_view text,
                       std::optional<std::string_view> chars, Side side) {
  const auto goes = [&chars](std::string_view character) {
    if (!chars.has_value()) {
      return IsSpace(ReadCodePoint(character.data()).value);
    }
    return FindFirst(*chars, character) != std::string_view::npos;
  };
  while (side != Side::kRight && !text.empty()) {
    const int size = ReadCodePoint(text.data()).size_bytes;
    if (!goes(text.substr(0, size))) break;
    text.remove_prefix(size);
  }
  while (side != Side::kLeft && !text.empty()) {
    const size_t last = PreviousCharacter(text, text.size());
    if (!goes(text.substr(last))) break;
    text = text.substr(0, last);
  }
  return text;
}

size_t LineBytes(std::string_view text) {
  size_t size = 0;
  while (size < text.size() && LineEndBytes(text, size) == 0) {
    size += ReadCodePoint(text.data() + size).size_bytes;
  }
  return size;
}

size_t LineEndBytes(std::string_view text, size_t at) {
  static constexpr std::u32string_view kLineEnds =
      U"\n\v\f\r\u001C\u001D\u001E\u0085\u2028\u2029";
  if (at == text.size()) return 0;
  if (text.substr(at).starts_with("\r\n")) return 2;
  const CodePoint c = ReadCodePoint(text.data() + at);
  return kLineEnds.find(c.value) == kLineEnds.npos ? 0 : c.size_bytes;
}

size_t FindFirst(std::string_view text, std::string_view needle,
                 size_t from_byte) {
  if (from_byte > text.size()) return std::string_view::npos;
  const void* at = memmem(text.data() + from_byte, text.size() - from_byte,
                          needle.data(), needle.size());
  return at ? static_cast<const char*>(at) - text.data()
            : std::string_view::npos;
}

size_t FindLast(std::string_view text, std::string_view needle) {
  const std::string mirrored(text.rbegin(), text.rend());
  const std::string mirrored_needle(needle.rbegin(), needle.rend());
  const size_t at = FindFirst(mirrored, mirrored_needle);
  return at == std::string_view::npos ? at : text.size() - at - needle.size();
}

size_t CountOccurrences(std::string_view text, std::string_view needle) {
  size_t count = 0;
  for (size_t at = FindFirst(text, needle); at != std::string_view::npos;
       at = FindFirst(text, needle, at + needle.size())) {
    ++count;
  }
  return count;
}

std::string Replace(std::string_view text, std::string_view from,
                    std::string_view to, int64_t count) {
  std::string out;
  size_t begin = 0;
  for (; count != 0; --count) {
    const size_t at = FindFirst(text, from, begin);
    if (at == std::string_view::npos) break;
    out.append(text.substr(begin, at - begin)).append(to);
    begin = at + from.size();
  }
  return out.append(text.substr(begin));
}

void AppendQuoted(std::string_view text, std::string* out) {
  const bool use_double = text.find('\'') != std::string_view::npos &&
                          text.find('"') == std::string_view::npos;
  const char quote = use_double ? '"' : '\'';
  out->push_back(quote);
  out->append(Mapped(text, [quote](char32_t c, std::string* out) {
    if (c == static_cast<char32_t>(quote) || c == '\\') {
      out->push_back('\\');
      out->push_back(static_cast<char>(c));
    } else if (c == '\n' || c == '\r' || c == '\t') {
      out->append(c == '\n' ? "\\n" : c == '\r' ? "\\r" : "\\t");
    } else if (IsPrintable(c)) {
      AppendUtf8(c, out);
    } else {
      char escape[16];
      const char* format = c < 0x100     ? "\\x%02x"
                           : c < 0x10000 ? "\\u%04x"
                                         : "\\U%08x";
      const int size = std::snprintf(escape, sizeof(escape), format,
                                     static_cast<unsigned>(c));
      out->append(escape, size);
    }
  }));
  out->push_back(quote);
}

}  // namespace moebius::jinja
