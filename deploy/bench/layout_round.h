// The layouts that a benchmark or the demonstration goes round. Pure.
#pragma once

#include <cstddef>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "common/config/config.h"

namespace moebius {

// LayoutRound
//
// Of ep, tp2 and tp: from ep to tp2, to tp, to ep, and so on.
class LayoutRound {
 public:
  // Of layouts by name.
  // Errors: kInvalidArgument where a group of `num_ranks` has not all of them,
  // one is named twice, or nothing is left to go to.
  static absl::StatusOr<LayoutRound> Of(const std::vector<std::string>& names,
                                        int num_ranks);

  size_t size() const { return names_.size(); }
  // Where a group is after so many switches; after none, where it begins.
  const std::string& After(size_t switches) const {
    return names_[switches % names_.size()];
  }

  // What `moebius serve` is told, beside what `config` says already: begin
  // with the first, and have all of them resident.
  std::vector<std::string> ServeArgs(const Config& config) const;

 private:
  explicit LayoutRound(std::vector<std::string> names)
      : names_(std::move(names)) {}

  std::vector<std::string> names_;
};

}  // namespace moebius
