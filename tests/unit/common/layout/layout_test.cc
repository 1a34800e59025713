#include "common/layout/layout.h"

#include <vector>

#include "gtest/gtest.h"
#include "tests/status_matchers.h"

namespace moebius {
namespace {

using testing::HasSubstr;

constexpr int kSizes[] = {1, 2, 3, 4, 6, 8, 12, 16};

TEST(Layout, AnswersForEveryDivisor) {
  for (const int n : kSizes) {
    for (int t = -1; t <= n + 1; ++t) {
      const Layout layout{t};
      ASSERT_EQ(layout.divides(n), t >= 1 && n % t == 0) << t << " of " << n;
      if (!layout.divides(n)) continue;
      EXPECT_EQ(layout.served(n), t == 1 || t == n);
      EXPECT_EQ(layout.is_ep(), t == 1);
      std::vector<int> seen(n);
      for (Rank r = 0; r < n; ++r) {
        EXPECT_LT(layout.group_of(r), layout.num_groups(n));
        EXPECT_LT(layout.part_of(r), t);
        ++seen[layout.first_rank(layout.group_of(r)) + layout.part_of(r)];
      }
      EXPECT_EQ(seen, std::vector<int>(n, 1));
    }
  }
}

TEST(Layout, NamesBoth) {
  EXPECT_EQ(LayoutName(ExpertParallel()), "ep");
  EXPECT_EQ(LayoutName(TensorParallel(4)), "tp");
  EXPECT_EQ(LayoutName(TensorParallel(1)), "ep");
}

TEST(AttentionShape, RefusesWhatCannotBeDivided) {
  EXPECT_THAT(
      Validate(AttentionShape{3, 8, 4}),
      StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("8 query heads")));
  EXPECT_THAT(Validate(AttentionShape{6, 12, 4}),
              StatusIs(absl::StatusCode::kInvalidArgument,
                       HasSubstr("neither divides")));
  EXPECT_FALSE(Validate(AttentionShape{2, 6, 4}).ok());
  EXPECT_FALSE(Validate(AttentionShape{2, 0, 4}).ok());
  EXPECT_FALSE(Validate(AttentionShape{2, 8, 0}).ok());
  EXPECT_FALSE(Validate(AttentionShape{0, 8, 8}).ok());
  EXPECT_FALSE(
      Validate(AttentionShape{kMaxRanks + 1, kMaxRanks + 1, kMaxRanks + 1})
          .ok());
}

TEST(HeadsOf, EpHoldsAllHeads) {
  EXPECT_EQ(HeadsOf({4, 16, 8}, ExpertParallel(), 3), (HeadRange{0, 16, 0, 8}));
}

TEST(HeadsOf, TpDividesQueriesAndKeepsThemWithTheirKvHead) {
  for (const int n : kSizes) {
    for (const int kv : {1, 2, 3, 4, 8, 12}) {
      for (const int group : {1, 2, 3, 8}) {
        const AttentionShape shape{n, kv * group, kv};
        if (!Validate(shape).ok()) continue;
        std::vector<int> query_owners(shape.num_q_heads, 0);
        std::vector<int> kv_owners(kv, 0);
        for (Rank r = 0; r < n; ++r) {
          const HeadRange heads = HeadsOf(shape, TensorParallel(n), r);
          for (int q = heads.q_begin; q < heads.q_end; ++q) {
            ++query_owners[q];
            EXPECT_GE(q / group, heads.kv_begin);
            EXPECT_LT(q / group, heads.kv_end);
          }
          for (int h = heads.kv_begin; h < heads.kv_end; ++h) ++kv_owners[h];
        }
        for (const int owners : query_owners) EXPECT_EQ(owners, 1);
        for (const int owners : kv_owners) {
          EXPECT_EQ(owners, n > kv ? n / kv : 1) << n << " ranks, " << kv;
        }
      }
    }
  }
}

}  // namespace
}  // namespace moebius
