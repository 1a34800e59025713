// Which KV head pages a switch moves, and in which waves. Pure.
//
// A head page is K and V of one KV head for kPageTokens tokens in every layer;
// a page id indexes the pool of one rank. A request's table on a rank names,
// for each KV head held there, the pages of its blocks in order.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "common/base/ids.h"
#include "common/layout/layout.h"

namespace moebius {

using PageId = uint32_t;
inline constexpr PageId kNoPage = ~PageId{0};

// Pages of one request on one rank.
struct RankTable {
  Rank rank = 0;
  int kv_begin = 0;  // first KV head held
  int num_kv = 0;
  std::vector<PageId> pages;  // [block][num_kv]
  friend bool operator==(const RankTable&, const RankTable&) = default;
};

// Where a request's pages are: on the ranks of one group of the layout. EP one
// table, TP one a rank.
struct KvTable {
  uint32_t slot = 0;  // sequence slot of the request
  int num_blocks = 0;
  std::vector<RankTable> tables;  // of the group's ranks, ascending
  friend bool operator==(const KvTable&, const KvTable&) = default;
};

struct PageMove {
  Rank src_rank = 0;
  PageId src_page = 0;
  Rank dst_rank = 0;
  PageId dst_page = 0;
  friend bool operator==(const PageMove&, const PageMove&) = default;
};

// Moves of a wave may run in any order; a barrier separates waves. A wave's
// destinations are free at its start.
struct KvPlan {
  std::vector<std::vector<PageMove>> waves;
  std::vector<KvTable> tables;  // after the switch, in the order given
  int64_t num_moves() const {
    int64_t n = 0;
    for (const auto& wave : waves) n += static_cast<int64_t>(wave.size());
    return n;
  }
  friend bool operator==(const KvPlan&, const KvPlan&) = default;
};

inline constexpr int kMaxKvWaves = 64;

// Plans a switch of the KV cache from one layout to another.
//   free_pages  [rank] ids that no request holds now, in any order
//   kv_tokens   [request] for the choice of groups
//
// A request goes to a new group that has ranks of its old one: a share of its
// pages is there already, and what was spread evenly stays so. Where the new
// group contains the old one (to TP always) there is no choice. Else requests
// with the most tokens choose first: of the groups with room, the one with the
// least KV tokens, then the fewest requests, then the lowest.
// Pages that stay on their rank are not moved. Where ranks of the old group
// hold a head more than once, they take turns in sending its blocks.
// kResourceExhausted with the numbers when it cannot fit, even in waves.
// REQUIRES: HeadsDivide(shape, from), HeadsDivide(shape, to).
absl::StatusOr<KvPlan> PlanKv(
    const AttentionShape& shape, Layout from, Layout to,
    absl::Span<const KvTable> requests, absl::Span<const int64_t> kv_tokens,
    const std::vector<std::vector<PageId>>& free_pages);

}  // namespace moebius
