// How many tokens a pool of head pages holds in a layout. Pure.
#pragma once

#include <cstdint>

#include "absl/types/span.h"
#include "common/layout/layout.h"

namespace moebius {

// Tokens of KV that fit `pages` (of each rank), over all groups of the layout:
// in EP a block of kPageTokens takes a page of every KV head on one rank, in TP
// a page of each rank's share of heads on every rank, so the smallest pool
// counts. One sequence is bounded by one group's share of that.
// REQUIRES: as HeadsOf(); one number a rank.
uint64_t KvRoomTokens(const AttentionShape& shape, Layout layout,
                      absl::Span<const uint32_t> pages);

}  // namespace moebius
