#include "common/layout/kv_room.h"

#include <vector>

#include "gtest/gtest.h"

namespace moebius {
namespace {

TEST(KvRoom, IsCountedInWholeBlocksOfAGroup) {
  struct Case {
    AttentionShape shape;
    std::vector<uint32_t> pages;
    uint64_t ep_tokens, tp_tokens;
  };
  for (const Case& c : {
           // A block in EP takes a page of each of 4 heads, in TP 2 a rank.
           Case{{2, 8, 4}, {40, 40}, 2 * 10 * 16, 20 * 16},
           // EP adds up what the ranks have; TP is as small as the smallest.
           {{2, 8, 4}, {43, 7}, (10 + 1) * 16, 3 * 16},
           {{2, 8, 4}, {40, 1}, 10 * 16, 0},
           // Two heads over four ranks: each is held twice in TP.
           {{4, 8, 2}, {8, 8, 8, 8}, 4 * 4 * 16, 8 * 16},
           {{1, 8, 4}, {9}, 2 * 16, 2 * 16},
       }) {
    EXPECT_EQ(KvRoomTokens(c.shape, ExpertParallel(), c.pages), c.ep_tokens);
    EXPECT_EQ(KvRoomTokens(c.shape, TensorParallel(c.shape.num_ranks), c.pages),
              c.tp_tokens);
  }
}

}  // namespace
}  // namespace moebius
