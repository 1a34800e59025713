#include "deploy/bench/layout_round.h"

#include <algorithm>

#include "absl/strings/str_join.h"
#include "common/base/cat.h"
#include "common/base/status_macros.h"
#include "common/layout/layout.h"

namespace moebius {

absl::StatusOr<LayoutRound> LayoutRound::Of(
    const std::vector<std::string>& names, int num_ranks) {
  if (num_ranks < 2) {
    return absl::InvalidArgumentError(
        Cat("a group of ", num_ranks,
            " worker has one layout only; there is nothing to switch"));
  }
  std::vector<std::string> round;
  for (const std::string& name : names) {
    ASSIGN_OR_RETURN(const Layout layout, ParseLayout(name, num_ranks));
    const std::string known(LayoutName(layout, num_ranks));
    if (std::find(round.begin(), round.end(), known) != round.end()) {
      return absl::InvalidArgumentError(Cat(
          "--layouts: ", known, " of ", num_ranks, " workers is named twice"));
    }
    round.push_back(known);
  }
  if (round.size() < 2) {
    return absl::InvalidArgumentError(
        "--layouts: needed are two layouts at least");
  }
  return LayoutRound(std::move(round));
}

std::vector<std::string> LayoutRound::ServeArgs(const Config& config) const {
  std::vector<std::string> words = {"--layout", names_.front()};
  if (!config.layout.resident.has_value()) {
    words.push_back("--set");
    words.push_back(Cat("layout.resident=", absl::StrJoin(names_, " ")));
  }
  return words;
}

}  // namespace moebius
