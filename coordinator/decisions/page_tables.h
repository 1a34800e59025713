// Which head pages every running sequence holds, on every rank. Pure: no clock,
// lock, log or I/O.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <vector>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "common/base/ids.h"
#include "common/layout/kv_plan.h"
#include "common/layout/layout.h"
#include "common/step/step_plan.h"
#include "coordinator/decisions/page_allocator.h"

namespace moebius {

// Blocks that hold `num_tokens` tokens.
constexpr uint32_t BlocksFor(uint32_t num_tokens) {
  return (num_tokens + kPageTokens - 1) / kPageTokens;
}

// PageTables
//
// Owns the pages of all ranks and the tables of all sequence slots. Room is
// counted in blocks, of the *group* that a sequence is in (layout.h): a block
// takes the pages of the local heads on each rank of the group, so its fullest
// rank says what is left. In EP a group is one rank, in TP all of them.
//
// Memory is reused: a slot's tables keep their capacity, so a sequence that
// grows allocates nothing but the row that tells the workers.
// Threading: thread-compatible.
class PageTables {
 public:
  // REQUIRES: HeadsDivide(shape, layout); one pool size a rank.
  PageTables(const AttentionShape& shape, Layout layout, uint32_t max_slots,
             absl::Span<const uint32_t> pages_per_rank);

  Layout layout() const { return layout_; }
  int num_groups() const { return layout_.num_groups(shape_.num_ranks); }

  // Blocks that sequences of `group` can still be given.
  uint32_t free_blocks(int group) const {
    uint32_t least = std::numeric_limits<uint32_t>::max();
    for (Rank r = FirstRank(group); r < LastRank(group); ++r) {
      least = std::min(least, allocators_[r].num_free() / heads_);
    }
    return least;
  }
  uint32_t free_pages(Rank rank) const { return allocators_[rank].num_free(); }
  uint32_t num_pages(Rank rank) const { return allocators_[rank].num_pages(); }
  uint32_t num_blocks(uint32_t slot) const { return slots_[slot].num_blocks; }

  // Gives the sequence in `slot` `count` more blocks and appends the rows that
  // tell the workers. The first call binds the slot to `group`.
  // REQUIRES: count <= free_blocks(group); the slot's group, if it has one.
  void Grow(uint32_t slot, int group, uint32_t count,
            std::vector<PageRow>& rows);

  // Frees all pages of `slot`.
  void Release(uint32_t slot);

  // The sequence's tables as a switch wants them.
  KvTable TableOf(uint32_t slot) const;
  // [rank] pages that no slot holds, `most` of each rank at most.
  std::vector<std::vector<PageId>> FreePages(size_t most) const;

  // Puts the tables of a switch to `target` in place. Slots that `tables` does
  // not name hold nothing afterwards.
  // kInvalidArgument, changing nothing, when the tables are not a state of
  // `target`: shape, ranks of several groups, a page outside its pool or held
  // twice. REQUIRES: HeadsDivide(shape, target).
  absl::Status Replace(Layout target, absl::Span<const KvTable> tables);

 private:
  struct SlotPages {
    uint32_t num_blocks = 0;
    int group = 0;
    // [part of the group]; pages are [block][heads on rank].
    std::vector<std::vector<PageId>> ranks;
  };

  void SetLayout(Layout layout);
  absl::Status CheckTable(Layout target, const KvTable& table) const;
  // Ranks on which a sequence of `group` has tables, [first, last).
  Rank FirstRank(int group) const { return layout_.first_rank(group); }
  Rank LastRank(int group) const { return layout_.first_rank(group + 1); }

  AttentionShape shape_;
  Layout layout_;
  uint32_t heads_ = 0;  // KV heads on a rank, of a sequence of its group
  std::vector<PageAllocator> allocators_;  // [rank]
  std::vector<SlotPages> slots_;
};

}  // namespace moebius
