// The free head pages of one rank's pool. Pure: no clock, lock, log or I/O.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/types/span.h"
#include "common/base/ids.h"
#include "common/layout/kv_plan.h"

namespace moebius {

// PageAllocator
//
// Pages 0 .. num_pages-1, each free or taken. The page freed last is handed out
// first. Allocate and Free are O(1) and never allocate memory.
// A page that is freed twice, or was never taken, is our own bug and ends the
// process (CHECK).
// Threading: thread-compatible.
class PageAllocator {
 public:
  explicit PageAllocator(uint32_t num_pages);

  uint32_t num_pages() const { return static_cast<uint32_t>(taken_.size()); }
  uint32_t num_free() const { return static_cast<uint32_t>(free_.size()); }
  bool is_taken(PageId page) const {
    return page < taken_.size() && taken_[page] != 0;
  }

  // Takes a page. REQUIRES: num_free() > 0.
  PageId Allocate();

  // REQUIRES: `page` is taken.
  void Free(PageId page);

  // Free pages, next to be handed out last.
  const std::vector<PageId>& free_pages() const { return free_; }

  // Forgets everything: exactly `taken` is taken from here on.
  // REQUIRES: each id is below num_pages() and named once.
  void Reset(absl::Span<const PageId> taken);

 private:
  std::vector<PageId> free_;    // a stack
  std::vector<uint8_t> taken_;  // [page]
};

}  // namespace moebius
