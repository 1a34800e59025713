#include "common/layout/layout.h"

#include <cstring>
#include <string>
#include <tuple>
#include <vector>

#include "gtest/gtest.h"
#include "tests/status_matchers.h"

namespace moebius {
namespace {

using testing::HasSubstr;

constexpr int kSizes[] = {1, 2, 3, 4, 6, 8};

std::vector<ExpertShape> Shapes() {
  std::vector<ExpertShape> shapes;
  for (const int n : kSizes) {
    for (const int experts : {8, 12, 24, 48}) {
      for (const int rows : {16, 48, 96, 192}) {
        for (const int unit : {1, 2, 16}) {
          const ExpertShape shape{n, 3, experts, rows, unit, 4};
          if (Validate(shape).ok()) shapes.push_back(shape);
        }
      }
    }
  }
  return shapes;
}

// ---- refusals --------------------------------------------------------------

TEST(ExpertShape, RefusesWhatCannotBeDivided) {
  EXPECT_THAT(
      Validate(ExpertShape{3, 2, 8, 48, 16, 4}),
      StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("8 experts")));
  EXPECT_THAT(Validate(ExpertShape{4, 2, 8, 48, 16, 4}),
              StatusIs(absl::StatusCode::kInvalidArgument,
                       HasSubstr("moe_intermediate_size 48")));
  EXPECT_THAT(Validate(ExpertShape{2, 2, 8, 48, 16, 4}),
              StatusIs(absl::StatusCode::kInvalidArgument));
}

TEST(ExpertShape, RefusesNonsenseNumbers) {
  EXPECT_FALSE(Validate(ExpertShape{0, 2, 8, 32, 16, 4}).ok());
  EXPECT_FALSE(Validate(ExpertShape{9, 2, 18, 144, 16, 4}).ok());
  EXPECT_FALSE(Validate(ExpertShape{2, -1, 8, 32, 16, 4}).ok());
  EXPECT_FALSE(Validate(ExpertShape{2, 2, 0, 32, 16, 4}).ok());
  EXPECT_FALSE(Validate(ExpertShape{2, 2, 8, 0, 16, 4}).ok());
  EXPECT_FALSE(Validate(ExpertShape{2, 2, 8, 32, 0, 4}).ok());
  EXPECT_FALSE(Validate(ExpertShape{2, 2, 8, 32, 16, 0}).ok());
  EXPECT_FALSE(Validate(ExpertShape{2, 2, -8, 32, 16, 4}).ok());
}

TEST(ExpertShape, RefusesSizesBeyond64Bits) {
  EXPECT_THAT(Validate(ExpertShape{2, 1 << 20, 1 << 30, 1 << 30, 16, 1 << 20}),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("2^63")));
}

TEST(ExpertShape, AcceptsDenseModels) {
  EXPECT_THAT(Validate(ExpertShape{4, 0, 0, 0, 16, 0}), IsOk());
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
  EXPECT_FALSE(Validate(AttentionShape{16, 16, 16}).ok());
}

// ---- segments --------------------------------------------------------------

TEST(PlanSlot, CoversTheDestinationOnceInOrder) {
  ASSERT_GT(Shapes().size(), 40u);
  for (const ExpertShape& shape : Shapes()) {
    const Layout layouts[] = {ExpertParallel(),
                              TensorParallel(shape.num_ranks)};
    for (const Layout from : layouts) {
      for (const Layout to : layouts) {
        for (Rank r = 0; r < shape.num_ranks; ++r) {
          int64_t at = 0;
          CopySegment last{-1, 0, 0, 0};
          for (const CopySegment& s : PlanSlot(shape, from, to, r)) {
            ASSERT_EQ(s.dst_offset, at);
            ASSERT_GT(s.size_bytes, 0);
            ASSERT_GE(s.src_rank, 0);
            ASSERT_LT(s.src_rank, shape.num_ranks);
            ASSERT_GE(s.src_offset, 0);
            ASSERT_LE(s.src_offset + s.size_bytes, shape.slot_bytes());
            // Nothing is left to merge.
            ASSERT_FALSE(last.src_rank == s.src_rank &&
                         last.src_offset + last.size_bytes == s.src_offset);
            at += s.size_bytes;
            last = s;
          }
          ASSERT_EQ(at, shape.slot_bytes());
        }
      }
    }
  }
}

TEST(PlanSlot, ReadsEveryByteOfEveryRankOnce) {
  for (const ExpertShape& shape : Shapes()) {
    const Layout layouts[] = {ExpertParallel(),
                              TensorParallel(shape.num_ranks)};
    for (const Layout from : layouts) {
      for (const Layout to : layouts) {
        std::vector<std::vector<int>> reads(
            shape.num_ranks, std::vector<int>(shape.slot_bytes(), 0));
        for (Rank r = 0; r < shape.num_ranks; ++r) {
          for (const CopySegment& s : PlanSlot(shape, from, to, r)) {
            for (int64_t i = 0; i < s.size_bytes; ++i) {
              ++reads[s.src_rank][s.src_offset + i];
            }
          }
        }
        for (const auto& rank : reads) {
          for (const int count : rank) ASSERT_EQ(count, 1);
        }
      }
    }
  }
}

// A group's memory. Every row knows where it belongs.
class Group {
 public:
  explicit Group(const ExpertShape& shape)
      : shape_(shape),
        regions_(shape.num_ranks, std::string(shape.region_bytes(), '\xee')) {}

  // The row as it should be anywhere.
  std::string Row(int layer, int expert, int matrix, int row) const {
    std::string bytes(shape_.row_bytes, '\0');
    uint32_t x = ((layer * 131 + expert) * 3 + matrix) * 1009 + row + 1;
    for (char& c : bytes) {
      x = x * 1664525 + 1013904223;
      c = static_cast<char>(x >> 24);
    }
    return bytes;
  }

  char* Slot(Rank rank, int slot) {
    return regions_[rank].data() + slot * shape_.slot_bytes();
  }

  // Where the definition of the layout says the row is.
  char* Address(Layout layout, int layer, int expert, int matrix, int row) {
    const int n = shape_.num_ranks;
    const int slot = SlotOf(layout, layer);
    if (layout == ExpertParallel()) {
      const int local = shape_.num_experts / n;
      return Slot(expert / local, slot) +
             ((int64_t{expert % local} * 3 + matrix) *
                  shape_.intermediate_rows +
              row) *
                 shape_.row_bytes;
    }
    const int rows = shape_.intermediate_rows / n;
    return Slot(row / rows, slot) +
           ((int64_t{expert} * 3 + matrix) * rows + row % rows) *
               shape_.row_bytes;
  }

  template <typename Visit>
  void ForEachRow(Visit visit) {
    for (int l = 0; l < shape_.num_moe_layers; ++l) {
      for (int e = 0; e < shape_.num_experts; ++e) {
        for (int m = 0; m < 3; ++m) {
          for (int row = 0; row < shape_.intermediate_rows; ++row) {
            visit(l, e, m, row);
          }
        }
      }
    }
  }

  void Fill(Layout layout) {
    ForEachRow([&](int l, int e, int m, int row) {
      std::memcpy(Address(layout, l, e, m, row), Row(l, e, m, row).data(),
                  shape_.row_bytes);
    });
  }
  bool Holds(Layout layout) {
    bool ok = true;
    ForEachRow([&](int l, int e, int m, int row) {
      ok = ok && std::memcmp(Address(layout, l, e, m, row),
                             Row(l, e, m, row).data(), shape_.row_bytes) == 0;
    });
    return ok;
  }

  void Switch(Layout from, Layout to) {
    // Which layer lives in a slot, by the layout it is in now; -1: free.
    std::vector<int> live(shape_.num_slots(), -1);
    for (int l = 0; l < shape_.num_moe_layers; ++l) live[SlotOf(from, l)] = l;
    for (const int l : SwitchLayerOrder(shape_.num_moe_layers, to)) {
      ASSERT_EQ(live[SlotOf(to, l)], -1) << "slot of layer " << l;
      for (Rank r = 0; r < shape_.num_ranks; ++r) {
        char* slot = Slot(r, SlotOf(to, l));
        for (const CopySegment& s : PlanSlot(shape_, from, to, r)) {
          std::memcpy(slot + s.dst_offset,
                      Slot(s.src_rank, SlotOf(from, l)) + s.src_offset,
                      s.size_bytes);
        }
      }
      live[SlotOf(from, l)] = -1;  // the barrier
      live[SlotOf(to, l)] = l;
    }
  }

 private:
  ExpertShape shape_;
  std::vector<std::string> regions_;
};

TEST(Switch, ThereAndBackIsTheIdentityOnRealBytes) {
  for (const ExpertShape& shape : Shapes()) {
    if (shape.num_ranks == 1) continue;
    const Layout tp = TensorParallel(shape.num_ranks);
    Group group(shape);
    group.Fill(ExpertParallel());
    ASSERT_TRUE(group.Holds(ExpertParallel()));
    ASSERT_NO_FATAL_FAILURE(group.Switch(ExpertParallel(), tp));
    ASSERT_TRUE(group.Holds(tp));
    ASSERT_NO_FATAL_FAILURE(group.Switch(tp, ExpertParallel()));
    ASSERT_TRUE(group.Holds(ExpertParallel()));
  }
}

TEST(Switch, OrderVisitsEveryLayerOnce) {
  EXPECT_EQ(SwitchLayerOrder(3, TensorParallel(2)),
            (std::vector<int>{0, 1, 2}));
  EXPECT_EQ(SwitchLayerOrder(3, ExpertParallel()), (std::vector<int>{2, 1, 0}));
  EXPECT_TRUE(SwitchLayerOrder(0, ExpertParallel()).empty());
}

TEST(LayoutName, NamesBoth) {
  EXPECT_EQ(LayoutName(ExpertParallel()), "ep");
  EXPECT_EQ(LayoutName(TensorParallel(4)), "tp");
  EXPECT_EQ(LayoutName(TensorParallel(1)), "ep");
}

// ---- heads -----------------------------------------------------------------

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
