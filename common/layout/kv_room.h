// How many tokens a pool of head pages holds in a layout. Pure.
#pragma once

#include <cstdint>

#include "absl/types/span.h"
#include "common/layout/layout.h"

namespace moebius {

// Tokens of KV that fit `pages` (of each rank), over all groups of the layout:
// a block of kPageTokens takes a page of each rank's share of KV heads on every
// rank of one group, so the smallest pool of a group counts. One sequence is
// bounded by one group's share of that. Where a group has more ranks than there
// are KV heads, each head is held more than once, and fewer tokens fit: of 8
// equal ranks and 4 KV heads, TP holds half of what any other layout does.
// REQUIRES: as HeadsOf(); one number a rank.
uint64_t KvRoomTokens(const AttentionShape& shape, Layout layout,
                      absl::Span<const uint32_t> pages);

}  // namespace moebius
