// Python's text operations over UTF-8. Every argument is valid UTF-8; all
// positions are counted in code points unless they say bytes.
//
// Limits: case mappings are the one-to-one ones of Unicode, and that of
// U+00DF; a final sigma is not told apart.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace moebius::jinja {

size_t CountCharacters(std::string_view text);

// Byte offset of the character at `index`; text.size() if there are not so
// many.
size_t ByteOffset(std::string_view text, size_t index);

// str.isspace() of one character, and of all there are.
bool IsSpace(char32_t c);
bool IsAllSpace(std::string_view text);

std::string ToUpper(std::string_view text);
std::string ToLower(std::string_view text);
// First character in upper case, the rest in lower.
std::string Capitalize(std::string_view text);
// str.title(): letters after what is not a letter are upper.
std::string TitleWords(std::string_view text);
// Jinja's filter of that name: words begin after space, -, (, {, [ and <.
std::string TitleFilter(std::string_view text);

// str.strip(chars) and its one-sided forms; without chars, white space.
enum class Side { kLeft = 1, kRight = 2, kBoth = 3 };
std::string_view Strip(std::string_view text,
                       std::optional<std::string_view> chars, Side side);

// Bytes of the first line, without its end.
size_t LineBytes(std::string_view text);
// Bytes of the line end at text[at], 0 if none is there.
size_t LineEndBytes(std::string_view text, size_t at);

// Byte offset of the first (last) occurrence in linear time, npos if none.
size_t FindFirst(std::string_view text, std::string_view needle,
                 size_t from_byte = 0);
size_t FindLast(std::string_view text, std::string_view needle);

// Occurrences that do not overlap, as str.count. REQUIRES: not of "".
size_t CountOccurrences(std::string_view text, std::string_view needle);

// str.replace(from, to, count); all if count is negative. REQUIRES: `from` is
// not "".
std::string Replace(std::string_view text, std::string_view from,
                    std::string_view to, int64_t count);

// Appends repr(text).
void AppendQuoted(std::string_view text, std::string* out);

}  // namespace moebius::jinja
