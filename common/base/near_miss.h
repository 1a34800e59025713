// The word that somebody meant who wrote another.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace moebius {

// The name in `names` that is nearest to `word`, if it is near enough to be
// meant: two slips away, or one of a word of up to three characters. A slip is
// a character too many, too few or wrong, or two neighbours the wrong way
// round. The first of several; "" when none is near.
std::string_view NearestName(std::string_view word,
                             const std::vector<std::string_view>& names);

// " (did you mean 'workers.count'?)", or "" when no name is near.
std::string NearMiss(std::string_view word,
                     const std::vector<std::string_view>& names);

}  // namespace moebius
