// Exit codes that mean the same in more than one of our programs.
#pragma once

namespace moebius {

// The coordinator's and `moebius serve`'s: the drain had to end before the
// requests in flight did.
inline constexpr int kExitDrainCut = 3;

}  // namespace moebius
