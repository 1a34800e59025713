#include "common/layout/kv_room.h"

#include <vector>

#include "gtest/gtest.h"

namespace moebius {
namespace {

TEST(KvRoom, IsCountedInWholeBlocksOfAGroup) {
  struct Case {
    AttentionShape shape;
    std::vector<uint32_t> pages;
    std::vector<uint64_t> tokens;  // of LayoutsOf(shape)
  };
  for (const Case& c : {
           // A block in EP takes a page of each of 4 heads, in TP 2 a rank.
           Case{{2, 8, 4}, {40, 40}, {2 * 10 * 16, 20 * 16}},
           // EP adds up what the ranks have; TP is as small as the smallest.
           {{2, 8, 4}, {43, 7}, {(10 + 1) * 16, 3 * 16}},
           {{2, 8, 4}, {40, 1}, {10 * 16, 0}},
           // Two heads over four ranks: each is held twice in TP.
           {{4, 8, 2}, {8, 8, 8, 8}, {4 * 4 * 16, 2 * 8 * 16, 8 * 16}},
           // In each group the smallest pool counts.
           {{4, 8, 4},
            {40, 8, 20, 6},
            {(10 + 2 + 5 + 1) * 16, (4 + 3) * 16, 6 * 16}},
           {{1, 8, 4}, {9}, {2 * 16}},
       }) {
    std::vector<uint64_t> tokens;
    for (const Layout layout : LayoutsOf(c.shape)) {
      tokens.push_back(KvRoomTokens(c.shape, layout, c.pages));
    }
    EXPECT_EQ(tokens, c.tokens);
  }
}

}  // namespace
}  // namespace moebius
