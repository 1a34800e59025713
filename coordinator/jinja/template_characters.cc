#include "coordinator/jinja/template_characters.h"

#include <string.h>  // memmem
#include <utf8proc.h>

#include <algorithm>
#include <cstdio>

#include "coordinator/text/utf8.h"

namespace moebius::jinja {
namespace {

// Calls visit(code point, byte offset) in order until it answers false.
template <typename Visit>
bool ForEach(std::string_view text, Visit visit) {
  for (size_t at = 0; at < text.size();) {
    const CodePoint c = ReadCodePoint(text.data() + at);
    if (!visit(c.value, at)) return false;
    at += c.size_bytes;
  }
  return true;
}

utf8proc_category_t Category(char32_t c) {
  return utf8proc_category(static_cast<utf8proc_int32_t>(c));
}

bool IsUpper(char32_t c) { return Category(c) == UTF8PROC_CATEGORY_LU; }
bool IsTitle(char32_t c) { return Category(c) == UTF8PROC_CATEGORY_LT; }
bool IsLower(char32_t c) {
  // Feminine and masculine ordinals are letters without case that have the
  // property Lowercase.
  return Category(c) == UTF8PROC_CATEGORY_LL || c == 0xAA || c == 0xBA;
}
bool IsCased(char32_t c) { return IsUpper(c) || IsLower(c) || IsTitle(c); }

bool IsLetter(char32_t c) {
  const auto category = Category(c);
  return category >= UTF8PROC_CATEGORY_LU && category <= UTF8PROC_CATEGORY_LO;
}

bool IsDecimal(char32_t c) { return Category(c) == UTF8PROC_CATEGORY_ND; }

bool IsSuperscriptDigit(char32_t c) {
  return c == 0xB2 || c == 0xB3 || c == 0xB9 || c == 0x2070 ||
         (c >= 0x2074 && c <= 0x2079) || (c >= 0x2080 && c <= 0x2089);
}

bool IsNumericCharacter(char32_t c) {
  const auto category = Category(c);
  return category == UTF8PROC_CATEGORY_ND || category == UTF8PROC_CATEGORY_NL ||
         category == UTF8PROC_CATEGORY_NO;
}

template <typename Predicate>
bool IsAll(std::string_view text, Predicate predicate) {
  return !text.empty() &&
         ForEach(text, [&](char32_t c, size_t) { return predicate(c); });
}

// The characters whose upper case is several characters (of
// SpecialCasing.txt, those of Latin text).
std::string_view LongUpper(char32_t c) {
  switch (c) {
    case 0xDF:
      return "SS";
    case 0xFB00:
      return "FF";
    case 0xFB01:
      return "FI";
    case 0xFB02:
      return "FL";
    case 0xFB03:
      return "FFI";
    case 0xFB04:
      return "FFL";
    case 0xFB05:
    case 0xFB06:
      return "ST";
    default:
      return "";
  }
}

void AppendUpper(char32_t c, std::string* out) {
  const std::string_view special = LongUpper(c);
  if (!special.empty()) {
    out->append(special);
  } else {
    AppendUtf8(utf8proc_toupper(static_cast<utf8proc_int32_t>(c)), out);
  }
}

void AppendLower(char32_t c, std::string* out) {
  if (c == 0x130) {
    out->append("i\xCC\x87");
  } else {
    AppendUtf8(utf8proc_tolower(static_cast<utf8proc_int32_t>(c)), out);
  }
}

void AppendTitle(char32_t c, std::string* out) {
  const std::string_view special = LongUpper(c);
  if (!special.empty()) {
    out->push_back(special[0]);
    for (char rest : special.substr(1)) {
      out->push_back(static_cast<char>(rest - 'A' + 'a'));
    }
  } else {
    AppendUtf8(utf8proc_totitle(static_cast<utf8proc_int32_t>(c)), out);
  }
}

// Bytes of the line end at text[at], 0 if none is there.
size_t LineEndBytes(std::string_view text, size_t at) {
  const CodePoint c = ReadCodePoint(text.data() + at);
  switch (c.value) {
    case '\r':
      return at + 1 < text.size() && text[at + 1] == '\n' ? 2 : 1;
    case '\n':
    case '\v':
    case '\f':
    case 0x1C:
    case 0x1D:
    case 0x1E:
    case 0x85:
    case 0x2028:
    case 0x2029:
      return c.size_bytes;
    default:
      return 0;
  }
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

bool IsPrintable(char32_t c) {
  if (c == ' ') return true;
  switch (Category(c)) {
    case UTF8PROC_CATEGORY_CC:
    case UTF8PROC_CATEGORY_CF:
    case UTF8PROC_CATEGORY_CS:
    case UTF8PROC_CATEGORY_CO:
    case UTF8PROC_CATEGORY_CN:
    case UTF8PROC_CATEGORY_ZL:
    case UTF8PROC_CATEGORY_ZP:
    case UTF8PROC_CATEGORY_ZS:
      return false;
    default:
      return true;
  }
}

bool IsIdentifierStart(char32_t c) {
  return c == '_' || IsLetter(c) || Category(c) == UTF8PROC_CATEGORY_NL;
}

bool IsIdentifierPart(char32_t c) {
  if (IsIdentifierStart(c) || IsDecimal(c)) return true;
  const auto category = Category(c);
  return category == UTF8PROC_CATEGORY_MN || category == UTF8PROC_CATEGORY_MC ||
         category == UTF8PROC_CATEGORY_PC;
}

bool IsAllAlpha(std::string_view text) { return IsAll(text, IsLetter); }
bool IsAllDigits(std::string_view text) {
  return IsAll(
      text, [](char32_t c) { return IsDecimal(c) || IsSuperscriptDigit(c); });
}
bool IsAllNumeric(std::string_view text) {
  return IsAll(text, IsNumericCharacter);
}
bool IsAllAlphanumeric(std::string_view text) {
  return IsAll(text,
               [](char32_t c) { return IsLetter(c) || IsNumericCharacter(c); });
}
bool IsAllSpace(std::string_view text) { return IsAll(text, IsSpace); }

bool IsAllUpper(std::string_view text) {
  bool cased = false;
  return ForEach(text,
                 [&](char32_t c, size_t) {
                   cased = cased || IsUpper(c);
                   return !IsLower(c) && !IsTitle(c);
                 }) &&
         cased;
}

bool IsAllLower(std::string_view text) {
  bool cased = false;
  return ForEach(text,
                 [&](char32_t c, size_t) {
                   cased = cased || IsLower(c);
                   return !IsUpper(c) && !IsTitle(c);
                 }) &&
         cased;
}

std::string ToUpper(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  ForEach(text, [&](char32_t c, size_t) {
    AppendUpper(c, &out);
    return true;
  });
  return out;
}

std::string ToLower(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  ForEach(text, [&](char32_t c, size_t) {
    AppendLower(c, &out);
    return true;
  });
  return out;
}

std::string Capitalize(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  ForEach(text, [&](char32_t c, size_t at) {
    at == 0 ? AppendTitle(c, &out) : AppendLower(c, &out);
    return true;
  });
  return out;
}

std::string SwapCase(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  ForEach(text, [&](char32_t c, size_t) {
    IsUpper(c) ? AppendLower(c, &out) : AppendUpper(c, &out);
    return true;
  });
  return out;
}

std::string TitleWords(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  bool in_word = false;
  ForEach(text, [&](char32_t c, size_t) {
    in_word ? AppendLower(c, &out) : AppendTitle(c, &out);
    in_word = IsCased(c);
    return true;
  });
  return out;
}

std::string TitleFilter(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  bool in_word = false;
  ForEach(text, [&](char32_t c, size_t) {
    const bool separates =
        IsSpace(c) || c == '-' || c == '(' || c == '{' || c == '[' || c == '<';
    in_word && !separates ? AppendLower(c, &out) : AppendUpper(c, &out);
    in_word = !separates;
    return true;
  });
  return out;
}

std::string_view Strip(std::string_view text,
                       std::optional<std::string_view> chars, Side side) {
  const auto drop = [&](size_t at) {
    const CodePoint c = ReadCodePoint(text.data() + at);
    if (!chars.has_value()) return IsSpace(c.value);
    return FindFirst(*chars, text.substr(at, c.size_bytes)) !=
           std::string_view::npos;
  };
  if (side != Side::kRight) {
    size_t at = 0;
    while (at < text.size() && drop(at)) {
      at += ReadCodePoint(text.data() + at).size_bytes;
    }
    text.remove_prefix(at);
  }
  if (side != Side::kLeft) {
    while (!text.empty()) {
      const size_t at = PreviousCharacter(text, text.size());
      if (!drop(at)) break;
      text = text.substr(0, at);
    }
  }
  return text;
}

std::vector<std::string_view> SplitLines(std::string_view text,
                                         bool keep_ends) {
  std::vector<std::string_view> lines;
  size_t begin = 0;
  for (size_t at = 0; at < text.size();) {
    const size_t end_bytes = LineEndBytes(text, at);
    if (end_bytes == 0) {
      at += ReadCodePoint(text.data() + at).size_bytes;
      continue;
    }
    lines.push_back(
        text.substr(begin, at - begin + (keep_ends ? end_bytes : 0)));
    at += end_bytes;
    begin = at;
  }
  if (begin < text.size()) lines.push_back(text.substr(begin));
  return lines;
}

std::vector<std::string_view> SplitSpace(std::string_view text, long max_splits,
                                         bool from_right) {
  std::vector<std::string_view> parts;
  std::string_view rest =
      Strip(text, std::nullopt, from_right ? Side::kRight : Side::kLeft);
  while (!rest.empty()) {
    if (max_splits >= 0 && parts.size() == static_cast<size_t>(max_splits)) {
      // What is left keeps its inner and far white space.
      parts.push_back(rest);
      break;
    }
    size_t cut = from_right ? rest.size() : 0;
    if (from_right) {
      while (cut > 0) {
        const size_t at = PreviousCharacter(rest, cut);
        if (IsSpace(ReadCodePoint(rest.data() + at).value)) break;
        cut = at;
      }
      parts.push_back(rest.substr(cut));
      rest = Strip(rest.substr(0, cut), std::nullopt, Side::kRight);
    } else {
      while (cut < rest.size()) {
        const CodePoint c = ReadCodePoint(rest.data() + cut);
        if (IsSpace(c.value)) break;
        cut += c.size_bytes;
      }
      parts.push_back(rest.substr(0, cut));
      rest = Strip(rest.substr(cut), std::nullopt, Side::kLeft);
    }
  }
  if (from_right) std::reverse(parts.begin(), parts.end());
  return parts;
}

std::vector<std::string_view> SplitAt(std::string_view text,
                                      std::string_view separator,
                                      long max_splits, bool from_right) {
  std::vector<std::string_view> parts;
  if (!from_right) {
    size_t begin = 0;
    while (max_splits < 0 || parts.size() < static_cast<size_t>(max_splits)) {
      const size_t at = FindFirst(text, separator, begin);
      if (at == std::string_view::npos) break;
      parts.push_back(text.substr(begin, at - begin));
      begin = at + separator.size();
    }
    parts.push_back(text.substr(begin));
    return parts;
  }
  // Occurrences from the right are those from the left in the mirrored text.
  std::string mirrored(text.rbegin(), text.rend());
  std::string needle(separator.rbegin(), separator.rend());
  size_t begin = 0;
  while (max_splits < 0 || parts.size() < static_cast<size_t>(max_splits)) {
    const size_t at = FindFirst(mirrored, needle, begin);
    if (at == std::string_view::npos) break;
    parts.push_back(text.substr(text.size() - at, at - begin));
    begin = at + needle.size();
  }
  parts.push_back(text.substr(0, text.size() - begin));
  std::reverse(parts.begin(), parts.end());
  return parts;
}

size_t CountLines(std::string_view text) {
  size_t count = 1;
  ForEach(text, [&](char32_t, size_t at) {
    count += LineEndBytes(text, at) != 0;
    return true;
  });
  return count;
}

size_t CountWords(std::string_view text) {
  size_t count = 1;
  bool in_word = false;
  ForEach(text, [&](char32_t c, size_t) {
    count += !in_word && !IsSpace(c);
    in_word = !IsSpace(c);
    return true;
  });
  return count;
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
  if (needle.empty()) return CountCharacters(text) + 1;
  size_t count = 0;
  for (size_t at = FindFirst(text, needle); at != std::string_view::npos;
       at = FindFirst(text, needle, at + needle.size())) {
    ++count;
  }
  return count;
}

std::string Replace(std::string_view text, std::string_view from,
                    std::string_view to, long count) {
  std::string out;
  size_t begin = 0;
  if (from.empty()) {
    // Between all characters, and at both ends.
    while (count != 0) {
      out.append(to);
      --count;
      if (begin >= text.size()) return out;
      const int size = ReadCodePoint(text.data() + begin).size_bytes;
      out.append(text.substr(begin, size));
      begin += size;
    }
  } else {
    for (; count != 0; --count) {
      const size_t at = FindFirst(text, from, begin);
      if (at == std::string_view::npos) break;
      out.append(text.substr(begin, at - begin)).append(to);
      begin = at + from.size();
    }
  }
  return out.append(text.substr(begin));
}

std::string Reverse(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  while (!text.empty()) {
    const size_t at = PreviousCharacter(text, text.size());
    out.append(text.substr(at));
    text = text.substr(0, at);
  }
  return out;
}

void AppendQuoted(std::string_view text, std::string* out) {
  const bool use_double = text.find('\'') != std::string_view::npos &&
                          text.find('"') == std::string_view::npos;
  const char quote = use_double ? '"' : '\'';
  out->push_back(quote);
  ForEach(text, [&](char32_t c, size_t at) {
    char escape[16];
    if (c == static_cast<char32_t>(quote) || c == '\\') {
      out->push_back('\\');
      out->push_back(static_cast<char>(c));
    } else if (c == '\n' || c == '\r' || c == '\t') {
      out->append(c == '\n' ? "\\n" : c == '\r' ? "\\r" : "\\t");
    } else if (IsPrintable(c)) {
      out->append(text.substr(at, ReadCodePoint(text.data() + at).size_bytes));
    } else {
      const char* format = c < 0x100     ? "\\x%02x"
                           : c < 0x10000 ? "\\u%04x"
                                         : "\\U%08x";
      const int size = std::snprintf(escape, sizeof(escape), format,
                                     static_cast<unsigned>(c));
      out->append(escape, size);
    }
    return true;
  });
  out->push_back(quote);
}

}  // namespace moebius::jinja
