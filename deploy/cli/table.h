// Tables on a terminal.
#pragma once

#include <string>
#include <vector>

namespace moebius {

// A header and rows as lines of columns, two spaces apart; the first column
// is flush left, the others flush right. A row may be shorter than the header.
std::string FormatTable(const std::vector<std::string>& header,
                        const std::vector<std::vector<std::string>>& rows);

// Text as lines of at most `columns`, broken at spaces; line breaks in it stay.
std::string WrapText(const std::string& text, size_t columns);

// A number with three significant figures, more where it is whole: "1234",
// "12.3", "0.123".
std::string ShortNumber(double value);

}  // namespace moebius
