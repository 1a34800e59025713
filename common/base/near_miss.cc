#include "common/base/near_miss.h"

#include <algorithm>
#include <utility>

#include "common/base/cat.h"

namespace moebius {
namespace {

constexpr size_t kMaxWordBytes = 64;  // of what somebody wrote

// Levenshtein distance, with neighbours the wrong way round as one slip
// ("optimal string alignment").
int Slips(std::string_view a, std::string_view b) {
  std::vector<int> before(b.size() + 1), row(b.size() + 1), next(b.size() + 1);
  for (size_t j = 0; j <= b.size(); ++j) row[j] = static_cast<int>(j);
  for (size_t i = 1; i <= a.size(); ++i) {
    next[0] = static_cast<int>(i);
    for (size_t j = 1; j <= b.size(); ++j) {
      next[j] = std::min({row[j] + 1, next[j - 1] + 1,
                          row[j - 1] + (a[i - 1] == b[j - 1] ? 0 : 1)});
      if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1]) {
        next[j] = std::min(next[j], before[j - 2] + 1);
      }
    }
    before = std::exchange(row, next);
  }
  return row[b.size()];
}

}  // namespace

std::string_view NearestName(std::string_view word,
                             const std::vector<std::string_view>& names) {
  word = word.substr(0, kMaxWordBytes);
  constexpr size_t kShortWord = 3;
  std::string_view nearest;
  int best = 3;
  for (std::string_view name : names) {
    const bool is_short = std::min(name.size(), word.size()) <= kShortWord;
    const int slips = Slips(word, name);
    if (slips > (is_short ? 1 : 2) || slips >= best) continue;
    best = slips;
    nearest = name;
  }
  return nearest;
}

std::string NearMiss(std::string_view word,
                     const std::vector<std::string_view>& names) {
  const std::string_view nearest = NearestName(word, names);
  return nearest.empty() ? "" : Cat(" (did you mean '", nearest, "'?)");
}

}  // namespace moebius
