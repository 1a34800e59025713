// A checksum of expert weights that does not depend on which rank holds what.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>

#include "common/layout/experts_state.h"
#include "kernels/thread_pool.h"

namespace moebius {

// Sum, modulo 2^64, over the units of rows in this rank's slots, of a hash of
// the unit's bytes and of its place in the model (layer, expert, matrix, unit;
// padding has places as well). Every unit is on exactly one rank, so the sum
// over ranks is the same in every state of a switch: one that lost, repeated or
// misplaced a unit changes it.
//   experts   base of the experts region, whose layers lie as `state` says
uint64_t WeightChecksum(const ExpertShape& shape, const ExpertsState& state,
                        Rank rank, const std::byte* experts, ThreadPool* pool);

// The share of one layer in that sum. Ends early, with any number, once `*stop`
// is true; looks at it after every unit. null: it does not end early.
uint64_t LayerChecksum(const ExpertShape& shape, const ExpertsState& state,
                       Rank rank, const std::byte* experts, int moe_layer,
                       const std::atomic<bool>* stop);

}  // namespace moebius
