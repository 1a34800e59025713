// Text from outside, in a form that terminals and logs can take.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>

namespace moebius {

// `text` without anything that moves a cursor, changes a terminal, ends a line
// or turns the direction of reading: control characters (C0, DEL, C1), line and
// paragraph separators and bidirectional controls become escapes like \n, \x1b
// and \u202e, bytes that are not UTF-8 become \xff. Everything else,
// backslashes too, stays as it is. What is beyond `max_bytes` of the result
// becomes "...".
std::string Printable(std::string_view text,
                      size_t max_bytes = std::string::npos);

// The same, but line feeds and tabs stay: for whole messages to a person.
std::string PrintableLines(std::string_view text);

}  // namespace moebius
