#include "common/config/layout_config.h"

#include <algorithm>
#include <string>
#include <string_view>

#include "common/base/cat.h"
#include "common/base/status_macros.h"

namespace moebius {
namespace {

std::vector<Layout> InGroup(const std::vector<LayoutChoice>& choices,
                            int num_ranks) {
  std::vector<Layout> layouts;
  for (const LayoutChoice& choice : choices) {
    layouts.push_back(choice.LayoutIn(num_ranks));
  }
  std::sort(layouts.begin(), layouts.end(),
            [](Layout a, Layout b) { return a.tp_size > b.tp_size; });
  layouts.erase(std::unique(layouts.begin(), layouts.end()), layouts.end());
  return layouts;
}

absl::Status CheckIsThere(const Config& config, std::string_view key,
                          LayoutChoice choice,
                          const std::vector<Layout>& layouts) {
  const int n = config.workers.count;
  if (choice.is_auto() || std::find(layouts.begin(), layouts.end(),
                                    choice.LayoutIn(n)) != layouts.end()) {
    return absl::OkStatus();
  }
  std::string there;
  for (const Layout layout : layouts) {
    there += Cat(there.empty() ? "" : ", ", LayoutName(layout, n));
  }
  return absl::InvalidArgumentError(Cat("key '", key, "' names ",
                                        LayoutChoiceName(choice), ", which ", n,
                                        n == 1 ? " worker does" : " workers do",
                                        " not have: allowed is ", there));
}

}  // namespace

std::vector<Layout> CandidateLayouts(const Config& config) {
  return InGroup(config.layout.candidates, config.workers.count);
}

std::vector<Layout> ResidentLayouts(const Config& config) {
  return config.layout.resident.has_value()
             ? InGroup(*config.layout.resident, config.workers.count)
             : CandidateLayouts(config);
}

std::vector<double> LayoutThresholds(const Config& config) {
  const LayoutConfig& layout = config.layout;
  if (!layout.thresholds.empty()) {
    return {layout.thresholds.begin(), layout.thresholds.end()};
  }
  const double ep_threshold = layout.switch_threshold > 0
                                  ? layout.switch_threshold
                                  : 2 * config.workers.count;
  const std::vector<Layout> candidates = CandidateLayouts(config);
  std::vector<double> thresholds;
  for (size_t i = 1; i < candidates.size(); ++i) {
    thresholds.push_back(ep_threshold / candidates[i].tp_size);
  }
  return thresholds;
}

Layout InitialLayout(const Config& config) {
  return config.layout.choice.is_auto()
             ? CandidateLayouts(config).front()
             : config.layout.choice.LayoutIn(config.workers.count);
}

absl::Status CheckLayouts(const Config& config,
                          const std::vector<Layout>& layouts) {
  const LayoutConfig& section = config.layout;
  RETURN_IF_ERROR(
      CheckIsThere(config, "layout.choice", section.choice, layouts));
  for (const LayoutChoice& one : section.candidates) {
    RETURN_IF_ERROR(CheckIsThere(config, "layout.candidates", one, layouts));
  }
  if (section.resident.has_value()) {
    for (const LayoutChoice& one : *section.resident) {
      RETURN_IF_ERROR(CheckIsThere(config, "layout.resident", one, layouts));
    }
  }
  const size_t pairs = CandidateLayouts(config).size() - 1;
  if (!section.thresholds.empty() && section.thresholds.size() != pairs) {
    return absl::InvalidArgumentError(
        Cat("key 'layout.thresholds' has ", section.thresholds.size(),
            " numbers: allowed is one for each two neighbours of "
            "'layout.candidates', ",
            pairs, " here, or none"));
  }
  return absl::OkStatus();
}

}  // namespace moebius
