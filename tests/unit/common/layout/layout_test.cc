#include "common/layout/layout.h"

#include <algorithm>
#include <string>
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

TEST(ParseLayout, NamesTheLayoutsThatThereAre) {
  for (const char* text : {"", "EP", "tp3", "tp8", "tp0", "tp-2", "tp+2",
                           "tp 2", "tp2 ", "tp4294967298", "tp2\n", "ep1"}) {
    EXPECT_THAT(ParseLayout(text, 4),
                StatusIs(absl::StatusCode::kInvalidArgument,
                         HasSubstr("of 4 ranks; there are ep, tp2 and tp")))
        << text;
  }
  EXPECT_THAT(ParseLayout("tp2", 1),
              StatusIs(absl::StatusCode::kInvalidArgument,
                       HasSubstr("\"tp2\" of 1 rank; there is ep")));
  EXPECT_THAT(ParseLayout("ep", 0),
              StatusIs(absl::StatusCode::kInvalidArgument));
  // Of 12 ranks and 4 KV heads: neither of 6 and 4 divides the other.
  EXPECT_THAT(
      ParseLayout("tp6", AttentionShape{12, 12, 4}),
      StatusIs(
          absl::StatusCode::kInvalidArgument,
          HasSubstr("\"tp6\" of 12 ranks; there are ep, tp2, tp4 and tp")));
}

TEST(ParseLayout, ReadsWhatLayoutNameGives) {
  EXPECT_EQ(LayoutName(Layout{1}, 8), "ep");
  EXPECT_EQ(LayoutName(Layout{2}, 8), "tp2");
  EXPECT_EQ(LayoutName(Layout{4}, 8), "tp4");
  EXPECT_EQ(LayoutName(Layout{8}, 8), "tp");
  EXPECT_EQ(LayoutName(Layout{1}, 1), "ep");
  for (int n = 1; n <= kMaxRanks; ++n) {
    const AttentionShape shape{n, n, n};  // every divisor
    for (const Layout layout : LayoutsOf(shape)) {
      const std::string name(LayoutName(layout, n));
      EXPECT_EQ(*ParseLayout(name, n), layout);
      EXPECT_EQ(*ParseLayout(name, shape), layout);
      EXPECT_EQ(*ParseLayout("tp" + std::to_string(layout.tp_size), n), layout);
    }
    EXPECT_EQ(*ParseLayout("tp", n), TensorParallel(n));
  }
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

TEST(LayoutsOf, AreTheDivisorsThatDivideTheHeads) {
  using Sizes = std::vector<int>;
  const auto sizes = [](const AttentionShape& shape) {
    Sizes of;
    for (const Layout layout : LayoutsOf(shape)) of.push_back(layout.tp_size);
    return of;
  };
  EXPECT_EQ(sizes({8, 8, 4}), (Sizes{1, 2, 4, 8}));
  EXPECT_EQ(sizes({12, 12, 12}), (Sizes{1, 2, 3, 4, 6, 12}));
  EXPECT_EQ(sizes({12, 12, 4}), (Sizes{1, 2, 4, 12}));
  EXPECT_EQ(sizes({6, 6, 2}), (Sizes{1, 2, 6}));
  EXPECT_EQ(sizes({6, 6, 1}), (Sizes{1, 2, 3, 6}));
  EXPECT_EQ(sizes({1, 6, 3}), (Sizes{1}));
  for (const int t : {-2, 0, 3, 16}) {
    EXPECT_FALSE(HeadsDivide({8, 8, 4}, Layout{t})) << t;
  }
}

// In each group of every layout: each query head once, beside its KV head, and
// each KV head as often as any other.
TEST(HeadsOf, EachGroupHasEveryHead) {
  int replicated = 0, divided = 0;
  for (int n = 1; n <= kMaxRanks; ++n) {
    for (const int kv : {1, 2, 3, 4, 6, 8, 12, 16}) {
      for (const int group : {1, 2, 3, 8}) {
        const AttentionShape shape{n, kv * group, kv};
        if (!Validate(shape).ok()) continue;
        for (const Layout layout : LayoutsOf(shape)) {
          SCOPED_TRACE(testing::Message() << layout.tp_size << " of " << n
                                          << ", " << kv << " KV heads");
          const int held = std::max(1, layout.tp_size / kv);
          (held > 1 ? replicated : divided) += layout.tp_size > 1;
          const size_t groups = layout.num_groups(n);
          std::vector query_holders(groups, std::vector<int>(kv * group));
          std::vector kv_holders(groups, std::vector<int>(kv));
          for (Rank r = 0; r < n; ++r) {
            const HeadRange heads = HeadsOf(shape, layout, r);
            EXPECT_EQ(heads.num_kv(), HeadsOf(shape, layout, 0).num_kv());
            for (int q = heads.q_begin; q < heads.q_end; ++q) {
              ++query_holders[layout.group_of(r)][q];
              EXPECT_GE(q / group, heads.kv_begin);
              EXPECT_LT(q / group, heads.kv_end);
            }
            for (int h = heads.kv_begin; h < heads.kv_end; ++h) {
              ++kv_holders[layout.group_of(r)][h];
            }
          }
          EXPECT_EQ(query_holders,
                    (std::vector(groups, std::vector<int>(kv * group, 1))));
          EXPECT_EQ(kv_holders,
                    (std::vector(groups, std::vector<int>(kv, held))));
        }
      }
    }
  }
  EXPECT_GT(replicated, 20);
  EXPECT_GT(divided, 20);
}

}  // namespace
}  // namespace moebius
