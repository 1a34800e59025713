#include "coordinator/http/negotiation.h"

#include <algorithm>
#include <array>
#include <optional>
#include <string>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"

namespace moebius {
namespace {

std::string_view Trim(std::string_view text) {
  while (!text.empty() && (text.front() == ' ' || text.front() == '\t')) {
    text.remove_prefix(1);
  }
  while (!text.empty() && (text.back() == ' ' || text.back() == '\t')) {
    text.remove_suffix(1);
  }
  return text;
}

// Cuts `*rest` at the first `separator` and returns what was before it.
std::string_view CutAt(char separator, std::string_view* rest) {
  const size_t end = std::min(rest->find(separator), rest->size());
  const std::string_view first = rest->substr(0, end);
  rest->remove_prefix(std::min(end + 1, rest->size()));
  return Trim(first);
}

bool SameWord(std::string_view a, std::string_view b) {
  return absl::EqualsIgnoreCase(absl::string_view(a.data(), a.size()),
                                absl::string_view(b.data(), b.size()));
}

// Nothing: no entry.
std::optional<double> WeightInEntry(std::string_view entry,
                                    std::string_view range) {
  if (!SameWord(CutAt(';', &entry), range)) return std::nullopt;
  double weight = 1;
  while (!entry.empty()) {
    std::string_view parameter = CutAt(';', &entry);
    if (!SameWord(CutAt('=', &parameter), "q")) continue;
    if (!absl::SimpleAtod(absl::string_view(parameter.data(), parameter.size()),
                          &weight) ||
        !(weight >= 0 && weight <= 1)) {
      return std::nullopt;
    }
  }
  return weight;
}

std::string_view HeaderOrEmpty(const HttpRequest& request,
                               std::string_view name) {
  const std::string* value = request.Header(name);
  return value == nullptr ? std::string_view() : std::string_view(*value);
}

}  // namespace

double WeightOf(std::string_view list, std::string_view wanted) {
  const size_t slash = wanted.find('/');
  const bool is_type = slash != wanted.npos;
  const std::string family =
      is_type ? std::string(wanted.substr(0, slash)) + "/*" : "";
  const std::array<std::string_view, 3> ranges = {wanted, family,
                                                  is_type ? "*/*" : "*"};
  for (const std::string_view range : ranges) {
    if (range.empty()) continue;
    std::optional<double> best;
    for (std::string_view rest = list; !rest.empty();) {
      const auto weight = WeightInEntry(CutAt(',', &rest), range);
      if (weight.has_value()) best = std::max(best.value_or(0), *weight);
    }
    if (best.has_value()) return *best;
  }
  return 0;
}

bool TakesGzip(const HttpRequest& request) {
  return WeightOf(HeaderOrEmpty(request, "accept-encoding"), "gzip") > 0;
}

bool PrefersOpenMetrics(const HttpRequest& request) {
  constexpr std::string_view kOpenMetrics = "application/openmetrics-text";
  const std::string_view accept = HeaderOrEmpty(request, "accept");
  const double open = WeightOf(accept, kOpenMetrics);
  // A range that covers both is no wish for either.
  return open > WeightOf(accept, "text/plain");
}

}  // namespace moebius
