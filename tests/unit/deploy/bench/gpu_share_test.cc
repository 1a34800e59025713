#include "deploy/bench/gpu_share.h"

#include "gtest/gtest.h"

namespace moebius {
namespace {

TEST(GpuShareTest, OfWeightsCountsBlocksThatChangeTheirGpu) {
  struct Case {
    GpuPlacement placement;
    int from, to;
    double share;
  };
  const Case kCases[] = {
      // One rank a GPU takes all but its own block of its slot.
      {{2, 1}, 1, 2, 1.0 / 4},
      {{4, 1}, 1, 4, 3.0 / 16},
      {{4, 1}, 4, 1, 3.0 / 16},
      {{8, 1}, 1, 8, 7.0 / 64},
      // Of four on a GPU half of all blocks stay there.
      {{8, 4}, 1, 8, 1.0 / 4},
      // Pairs of ranks on one GPU exchange nothing with others.
      {{4, 2}, 1, 2, 0},
      {{4, 2}, 2, 4, 1.0 / 4},
      {{4, 4}, 1, 4, 0},
      {{1, 1}, 1, 1, 0},
  };
  for (const Case& c : kCases) {
    SCOPED_TRACE(testing::Message() << c.placement.num_ranks << " ranks, "
                                    << c.placement.ranks_per_gpu << " a GPU, "
                                    << c.from << " to " << c.to);
    EXPECT_DOUBLE_EQ(
        WeightShareBetweenGpus(c.placement, Layout{c.from}, Layout{c.to}),
        c.share);
  }
}

TEST(GpuShareTest, OfKvIsThatOfRanksOnOtherGpus) {
  EXPECT_DOUBLE_EQ(KvShareBetweenGpus({1, 1}), 0);
  EXPECT_DOUBLE_EQ(KvShareBetweenGpus({2, 2}), 0);
  EXPECT_DOUBLE_EQ(KvShareBetweenGpus({2, 1}), 1.0 / 2);
  EXPECT_DOUBLE_EQ(KvShareBetweenGpus({4, 1}), 1.0 / 4);
  EXPECT_DOUBLE_EQ(KvShareBetweenGpus({8, 4}), 4.0 / 7 / 2);
}

}  // namespace
}  // namespace moebius
