#include "coordinator/decisions/page_allocator.h"

#include <algorithm>

#include "common/base/check.h"

namespace moebius {

PageAllocator::PageAllocator(uint32_t num_pages) : taken_(num_pages, 0) {
  free_.reserve(num_pages);
  for (uint32_t i = num_pages; i > 0; --i) free_.push_back(i - 1);
}

PageId PageAllocator::Allocate() {
  CHECK(!free_.empty());
  const PageId page = free_.back();
  free_.pop_back();
  taken_[page] = 1;
  return page;
}

void PageAllocator::Free(PageId page) {
  CHECK(is_taken(page));
  taken_[page] = 0;
  free_.push_back(page);  // within the capacity reserved at the start
}

void PageAllocator::Reset(absl::Span<const PageId> taken) {
  std::fill(taken_.begin(), taken_.end(), 0);
  for (const PageId page : taken) {
    CHECK(page < taken_.size() && taken_[page] == 0);
    taken_[page] = 1;
  }
  free_.clear();
  for (uint32_t i = num_pages(); i > 0; --i) {
    if (taken_[i - 1] == 0) free_.push_back(i - 1);
  }
}

}  // namespace moebius
