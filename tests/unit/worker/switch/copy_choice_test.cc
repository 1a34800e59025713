#include "worker/switch/copy_choice.h"

#include "gtest/gtest.h"

namespace moebius {
namespace {

constexpr int64_t kMb = 1000 * 1000;

struct Case {
  const char* what;
  CopyShape shape;
  CopyChoice choice;
};

TEST(ChooseCopies, FollowsWhatWasMeasured) {
  const Case cases[] = {
      {"30B on 2 GPUs", {302 * kMb, 2, 1, 132}, {0, 32, 24}},
      {"30B on 4 GPUs", {75 * kMb, 4, 1, 132}, {0, 32, 24}},
      {"30B on 8 GPUs", {19 * kMb, 8, 1, 132}, {24, 32, 24}},
      {"the kernel is faster", {38 * kMb, 4, 1, 132}, {24, 32, 24}},
      {"just small", {kEngineBlockBytes - 1, 2, 1, 132}, {24, 32, 24}},
      {"just large", {kEngineBlockBytes, 2, 1, 132}, {0, 32, 24}},
      {"two ranks a GPU", {75 * kMb, 4, 2, 132}, {0, 32, 24}},
      {"2 ranks on one GPU", {302 * kMb, 2, 2, 132}, {0, 0, 264}},
      {"8 ranks on one GPU", {19 * kMb, 8, 8, 132}, {0, 0, 66}},
      {"16 ranks on one GPU", {5 * kMb, 16, 16, 108}, {0, 0, 32}},
      {"small on one GPU", {kDriverBlockBytes - 1, 2, 2, 132}, {0, 264, 264}},
      {"one rank", {0, 1, 1, 132}, {0, 528, 528}},
      {"nothing to copy", {0, 4, 1, 132}, {24, 32, 24}},
  };
  for (const Case& one : cases) {
    EXPECT_EQ(ChooseCopies(one.shape), one.choice) << one.what;
  }
}

TEST(SpareSlots, AreTwoWhereBlocksAreSmall) {
  EXPECT_EQ(SpareSlotsByDefault(8, 19 * kMb), 2);
  EXPECT_EQ(SpareSlotsByDefault(4, 75 * kMb), 1);
  EXPECT_EQ(SpareSlotsByDefault(2, 302 * kMb), 1);
  EXPECT_EQ(SpareSlotsByDefault(1, 19 * kMb), 1);
}

}  // namespace
}  // namespace moebius
