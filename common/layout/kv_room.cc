#include "common/layout/kv_room.h"

#include <algorithm>
#include <limits>

#include "common/base/ids.h"

namespace moebius {

uint64_t KvRoomTokens(const AttentionShape& shape, Layout layout,
                      absl::Span<const uint32_t> pages) {
  uint64_t blocks = 0;
  for (int group = 0; group < layout.num_groups(shape.num_ranks); ++group) {
    uint64_t of_group = std::numeric_limits<uint64_t>::max();
    for (Rank rank = layout.first_rank(group);
         rank < layout.first_rank(group + 1); ++rank) {
      const uint64_t heads = HeadsOf(shape, layout, rank).num_kv();
      of_group = std::min<uint64_t>(of_group, pages[rank] / heads);
    }
    blocks += of_group;
  }
  return blocks * kPageTokens;
}

}  // namespace moebius
