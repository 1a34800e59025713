#include "deploy/cli/table.h"

#include <algorithm>
#include <cmath>
#include <sstream>

#include "absl/strings/str_format.h"
#include "common/base/cat.h"

namespace moebius {
namespace {

// Columns of a terminal that UTF-8 text takes, near enough for our own words:
// its characters.
size_t Width(const std::string& text) {
  return static_cast<size_t>(std::count_if(
      text.begin(), text.end(), [](char c) { return (c & 0xc0) != 0x80; }));
}

}  // namespace

std::string FormatTable(const std::vector<std::string>& header,
                        const std::vector<std::vector<std::string>>& rows) {
  std::vector<size_t> widths(header.size(), 0);
  const auto measure = [&](const std::vector<std::string>& row) {
    for (size_t i = 0; i < std::min(row.size(), widths.size()); ++i) {
      widths[i] = std::max(widths[i], Width(row[i]));
    }
  };
  measure(header);
  for (const auto& row : rows) measure(row);
  std::string text;
  const auto append = [&](const std::vector<std::string>& row) {
    std::string line;
    for (size_t i = 0; i < std::min(row.size(), widths.size()); ++i) {
      const std::string pad(widths[i] - Width(row[i]), ' ');
      if (i > 0) line += "  ";
      line += i == 0 ? Cat(row[i], pad) : Cat(pad, row[i]);
    }
    line.erase(line.find_last_not_of(' ') + 1);
    text += Cat(line, "\n");
  };
  append(header);
  for (const auto& row : rows) append(row);
  return text;
}

std::string WrapText(const std::string& text, size_t columns) {
  std::string wrapped;
  std::istringstream lines(text);
  for (std::string line; std::getline(lines, line);) {
    std::istringstream words(line);
    std::string out;
    for (std::string word; words >> word;) {
      if (!out.empty() && Width(out) + 1 + Width(word) > columns) {
        wrapped += Cat(out, "\n");
        out.clear();
      }
      out += Cat(out.empty() ? "" : " ", word);
    }
    wrapped += Cat(out, "\n");
  }
  return wrapped;
}

std::string ShortNumber(double value) {
  const double size = std::abs(value);
  if (!std::isfinite(value)) return "-";
  const int decimals = size >= 99.95    ? 0
                       : size >= 9.995  ? 1
                       : size >= 0.9995 ? 2
                       : size == 0      ? 0
                                        : 3;
  return absl::StrFormat("%.*f", decimals, value);
}

}  // namespace moebius
