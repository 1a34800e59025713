// A checksum of expert weights that does not depend on which rank holds what.
#pragma once

#include <cstddef>
#include <cstdint>

#include "common/layout/layout.h"
#include "kernels/thread_pool.h"

namespace moebius {

// Sum, modulo 2^64, over the 16-row units in this rank's slots of `layout`, of
// a hash of the unit's bytes and of its place in the model (layer, expert,
// matrix, unit). Every unit is on exactly one rank, so the sum over ranks is
// the same in EP and in TP: a switch that lost, repeated or misplaced a unit
// changes it.
//   experts   base of the experts region, laid out by common/layout/layout.h
uint64_t WeightChecksum(const ExpertShape& shape, Layout layout, Rank rank,
                        const std::byte* experts, ThreadPool* pool);

}  // namespace moebius
