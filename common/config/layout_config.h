// What the section `layout` of a configuration means to a group. Pure.
#pragma once

#include <vector>

#include "absl/status/status.h"
#include "common/config/config.h"
#include "common/layout/layout.h"

namespace moebius {

// The layouts that `layout.candidates` names, each once, widest groups first:
// from the one for the fewest requests in flight to the one for the most.
std::vector<Layout> CandidateLayouts(const Config& config);

// The layouts that `layout.resident` names, each once, widest groups first; by
// default the candidates.
std::vector<Layout> ResidentLayouts(const Config& config);

// Layout that weights are loaded in. The automatic choice begins with the
// candidate for the fewest requests, since none is in flight.
Layout InitialLayout(const Config& config);

// Requests in flight at and above which, of two neighbours of the candidates,
// the second is preferred: one less than candidates, ascending. By default EP
// takes over at `layout.switch_threshold`, and each group of other layouts is
// given as many requests as a rank has then.
std::vector<double> LayoutThresholds(const Config& config);

// kInvalidArgument with the key and the layouts that there are, where the
// section names one that is not in `layouts`, or thresholds that do not fit the
// candidates.
absl::Status CheckLayouts(const Config& config,
                          const std::vector<Layout>& layouts);

}  // namespace moebius
