// Some of the ranks of a group.
#pragma once

#include <cstdint>

#include "common/base/ids.h"

namespace moebius {

class RankSet {
 public:
  constexpr RankSet() = default;
  // Ranks 0 .. num_ranks-1.
  static constexpr RankSet All(int num_ranks) {
    RankSet set;
    set.bits_ = (uint32_t{1} << num_ranks) - 1;
    return set;
  }
  static constexpr RankSet Of(Rank rank) { return RankSet().with(rank); }
  constexpr bool contains(Rank rank) const { return bits_ >> rank & 1; }
  constexpr bool empty() const { return bits_ == 0; }
  constexpr RankSet with(Rank rank) const {
    RankSet set = *this;
    set.bits_ |= uint32_t{1} << rank;
    return set;
  }
  constexpr RankSet without(Rank rank) const {
    RankSet set = *this;
    set.bits_ &= ~(uint32_t{1} << rank);
    return set;
  }
  constexpr RankSet without(RankSet others) const {
    RankSet set = *this;
    set.bits_ &= ~others.bits_;
    return set;
  }
  friend constexpr bool operator==(RankSet, RankSet) = default;

 private:
  uint32_t bits_ = 0;
};

}  // namespace moebius
