#include "coordinator/decisions/page_tables.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "common/base/check.h"

namespace moebius {

PageTables::PageTables(const AttentionShape& shape, Layout layout,
                       uint32_t max_slots,
                       absl::Span<const uint32_t> pages_per_rank)
    : shape_(shape), slots_(max_slots) {
  CHECK(static_cast<int>(pages_per_rank.size()) == shape.num_ranks);
  for (const uint32_t pages : pages_per_rank) allocators_.emplace_back(pages);
  for (SlotPages& slot : slots_) slot.ranks.resize(shape.num_ranks);
  SetLayout(layout);
}

void PageTables::SetLayout(Layout layout) {
  layout_ = layout;
  // Every rank has equally many.
  heads_ = static_cast<uint32_t>(HeadsOf(shape_, layout, 0).num_kv());
}

void PageTables::Grow(uint32_t slot, int group, uint32_t count,
                      std::vector<PageRow>& rows) {
  SlotPages& pages = slots_[slot];
  CHECK(pages.num_blocks == 0 || pages.group == group);
  CHECK(count <= free_blocks(group));
  pages.group = group;
  const Rank first = FirstRank(group), last = LastRank(group);
  for (uint32_t i = 0; i < count; ++i) {
    for (Rank r = first; r < last; ++r) {
      PageRow& row = rows.emplace_back();
      row.slot = slot;
      row.block = pages.num_blocks;
      row.rank = r;
      row.pages.resize(heads_);
      for (PageId& page : row.pages) page = allocators_[r].Allocate();
      std::vector<PageId>& table = pages.ranks[r - first];
      table.insert(table.end(), row.pages.begin(), row.pages.end());
    }
    ++pages.num_blocks;
  }
}

void PageTables::Release(uint32_t slot) {
  SlotPages& pages = slots_[slot];
  const Rank first = FirstRank(pages.group), last = LastRank(pages.group);
  if (pages.num_blocks == 0) return;
  for (Rank r = first; r < last; ++r) {
    std::vector<PageId>& table = pages.ranks[r - first];
    for (const PageId page : table) allocators_[r].Free(page);
    table.clear();
  }
  pages.num_blocks = 0;
}

KvTable PageTables::TableOf(uint32_t slot) const {
  const SlotPages& pages = slots_[slot];
  KvTable table;
  table.slot = slot;
  table.num_blocks = static_cast<int>(pages.num_blocks);
  const Rank first = FirstRank(pages.group);
  for (Rank r = first; r < LastRank(pages.group); ++r) {
    const HeadRange heads = HeadsOf(shape_, layout_, r);
    table.tables.push_back(
        {r, heads.kv_begin, heads.num_kv(), pages.ranks[r - first]});
  }
  return table;
}

std::vector<std::vector<PageId>> PageTables::FreePages(size_t most) const {
  std::vector<std::vector<PageId>> free;
  for (const PageAllocator& allocator : allocators_) {
    const std::vector<PageId>& pages = allocator.free_pages();
    free.emplace_back(pages.end() - std::min(most, pages.size()), pages.end());
  }
  return free;
}

absl::Status PageTables::CheckTable(Layout target, const KvTable& table) const {
  if (table.slot >= slots_.size() || table.num_blocks < 0 ||
      table.tables.size() != static_cast<size_t>(target.tp_size)) {
    return absl::InvalidArgumentError(
        absl::StrCat("slot ", table.slot, " has ", table.tables.size(),
                     " rank tables of ", table.num_blocks, " blocks"));
  }
  for (size_t i = 0; i < table.tables.size(); ++i) {
    const RankTable& t = table.tables[i];
    // The ranks of one group, in their order.
    const Rank first = table.tables[0].rank;
    const bool rank_ok = first >= 0 && first < shape_.num_ranks &&
                         target.part_of(first) == 0 &&
                         t.rank == first + static_cast<Rank>(i);
    if (!rank_ok) {
      return absl::InvalidArgumentError(
          absl::StrCat("slot ", table.slot, " has a table on rank ", t.rank,
                       " in groups of ", target.tp_size));
    }
    const HeadRange heads = HeadsOf(shape_, target, t.rank);
    if (t.kv_begin != heads.kv_begin || t.num_kv != heads.num_kv() ||
        t.pages.size() != size_t(table.num_blocks) * t.num_kv) {
      return absl::InvalidArgumentError(
          absl::StrCat("the table of slot ", table.slot, " on rank ", t.rank,
                       " does not hold the heads of its rank"));
    }
  }
  return absl::OkStatus();
}

absl::Status PageTables::Replace(Layout target,
                                 absl::Span<const KvTable> tables) {
  std::vector<std::vector<PageId>> taken(shape_.num_ranks);
  std::vector<std::vector<bool>> seen(shape_.num_ranks);
  for (Rank r = 0; r < shape_.num_ranks; ++r) {
    seen[r].resize(allocators_[r].num_pages());
  }
  std::vector<bool> named(slots_.size());
  for (const KvTable& table : tables) {
    if (absl::Status status = CheckTable(target, table); !status.ok()) {
      return status;
    }
    if (named[table.slot]) {
      return absl::InvalidArgumentError(
          absl::StrCat("slot ", table.slot, " is named twice"));
    }
    named[table.slot] = true;
    for (const RankTable& t : table.tables) {
      for (const PageId page : t.pages) {
        if (page >= seen[t.rank].size() || seen[t.rank][page]) {
          return absl::InvalidArgumentError(
              absl::StrCat("page ", page, " of rank ", t.rank, " for slot ",
                           table.slot, " is outside the pool or held twice"));
        }
        seen[t.rank][page] = true;
        taken[t.rank].push_back(page);
      }
    }
  }

  for (SlotPages& slot : slots_) {
    for (std::vector<PageId>& pages : slot.ranks) pages.clear();
    slot.num_blocks = 0;
  }
  SetLayout(target);
  for (Rank r = 0; r < shape_.num_ranks; ++r) allocators_[r].Reset(taken[r]);
  for (const KvTable& table : tables) {
    SlotPages& slot = slots_[table.slot];
    slot.num_blocks = static_cast<uint32_t>(table.num_blocks);
    slot.group = target.group_of(table.tables[0].rank);
    for (size_t i = 0; i < table.tables.size(); ++i) {
      slot.ranks[i] = table.tables[i].pages;
    }
  }
  return absl::OkStatus();
}

}  // namespace moebius
