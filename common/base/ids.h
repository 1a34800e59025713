// Strong types for the numbers that must never be mixed up.
#pragma once

#include <compare>
#include <cstdint>
#include <functional>

namespace moebius {

// A number with a name. Compares and hashes like its value; `next()` is the
// following one.
template <typename Tag, typename Value = uint64_t>
struct Id {
  Value value = 0;
  friend constexpr auto operator<=>(const Id&, const Id&) = default;
  constexpr Id next() const { return Id{value + 1}; }
};

using Rank = int;                               // worker in its group, 0..N-1
using StepId = Id<struct StepTag>;              // forward passes, from 1
using Epoch = Id<struct EpochTag>;              // switch attempts, never reused
using Term = Id<struct TermTag>;                // coordinator processes
using Incarnation = Id<struct IncarnationTag>;  // processes of a worker
using RequestId = Id<struct RequestTag>;        // one generation (one choice)

// Largest group of workers.
inline constexpr int kMaxRanks = 16;
// In place of a rank where the coordinator speaks.
inline constexpr Rank kCoordinatorRank = -1;
// Tokens of a KV page.
inline constexpr int kPageTokens = 16;

}  // namespace moebius

template <typename Tag, typename Value>
struct std::hash<moebius::Id<Tag, Value>> {
  size_t operator()(const moebius::Id<Tag, Value>& id) const {
    return std::hash<Value>()(id.value);
  }
};
