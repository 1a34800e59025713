// Python's text operations over UTF-8. Every argument is valid UTF-8; all
// positions are counted in code points unless they say bytes.
//
// Limits: case mappings are the one-to-one ones of Unicode with the full
// mappings of U+00DF and of the Latin ligatures; a final sigma is not told
// apart.
#pragma once

#include <cstddef>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace moebius::jinja {

size_t CountCharacters(std::string_view text);

// Byte offset of the character at `index`; text.size() if there are not so
// many.
size_t ByteOffset(std::string_view text, size_t index);

// str.isspace() of one character.
bool IsSpace(char32_t c);

// str.isprintable() of one character.
bool IsPrintable(char32_t c);

// str.isidentifier(): of a first character, and of a later one.
bool IsIdentifierStart(char32_t c);
bool IsIdentifierPart(char32_t c);

// str.isalpha(), .isdigit(), ...: true if the text is not empty and every
// character is of the class.
bool IsAllAlpha(std::string_view text);
bool IsAllDigits(std::string_view text);
bool IsAllNumeric(std::string_view text);
bool IsAllAlphanumeric(std::string_view text);
bool IsAllSpace(std::string_view text);
// True if there is a cased character and all cased ones are upper (lower).
bool IsAllUpper(std::string_view text);
bool IsAllLower(std::string_view text);

std::string ToUpper(std::string_view text);
std::string ToLower(std::string_view text);
// First character in upper case, the rest in lower.
std::string Capitalize(std::string_view text);
std::string SwapCase(std::string_view text);
// str.title(): letters after what is not a letter are upper.
std::string TitleWords(std::string_view text);
// Jinja's filter of that name: words begin after space, -, (, {, [ and <.
std::string TitleFilter(std::string_view text);

// str.strip(chars) and its one-sided forms; without chars, white space.
enum class Side { kLeft = 1, kRight = 2, kBoth = 3 };
std::string_view Strip(std::string_view text,
                       std::optional<std::string_view> chars, Side side);

// str.splitlines(keepends).
std::vector<std::string_view> SplitLines(std::string_view text, bool keep_ends);
// str.split(), at runs of white space; at most max_splits if not negative.
// From the right if `from_right`. Parts in order.
std::vector<std::string_view> SplitSpace(std::string_view text, long max_splits,
                                         bool from_right);
// str.split(separator). REQUIRES: separator not empty.
std::vector<std::string_view> SplitAt(std::string_view text,
                                      std::string_view separator,
                                      long max_splits, bool from_right);

// Upper bounds of the number of parts that the above give.
size_t CountLines(std::string_view text);
size_t CountWords(std::string_view text);

// Byte offset of the first (last) occurrence in linear time, npos if none.
size_t FindFirst(std::string_view text, std::string_view needle,
                 size_t from_byte = 0);
size_t FindLast(std::string_view text, std::string_view needle);

// Occurrences that do not overlap, as str.count.
size_t CountOccurrences(std::string_view text, std::string_view needle);

// str.replace(from, to, count); all if count is negative.
std::string Replace(std::string_view text, std::string_view from,
                    std::string_view to, long count);

std::string Reverse(std::string_view text);

// Appends repr(text).
void AppendQuoted(std::string_view text, std::string* out);

}  // namespace moebius::jinja
