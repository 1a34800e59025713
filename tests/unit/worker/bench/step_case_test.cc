#include "worker/bench/step_case.h"

#include <set>
#include <utility>

#include "gtest/gtest.h"
#include "tests/status_matchers.h"
#include "tests/unit/worker/model/small_model.h"

namespace moebius {
namespace {

using ::testing::HasSubstr;

// Two MoE layers of 4 experts, no dense one.
SmallModel Even() {
  SmallModel model;
  model.hidden_size = 64;
  model.num_q_heads = 4;
  model.num_kv_heads = 2;
  model.head_dim = 16;
  model.moe_intermediate_size = 64;
  model.num_experts = 4;
  model.experts_per_token = 2;
  model.vocab_size = 100;
  model.max_positions = 256;
  model.is_moe_layer = {true, true};
  return model;
}

ModelShape ShapeOf(const SmallModel& model, int num_ranks) {
  const auto shape = MakeModelShape(SpecOf(model), num_ranks);
  EXPECT_THAT(shape, IsOk());
  return *shape;
}

constexpr double kAttention = 64 * 64 + 2 * 64 * 32 + 64 * 64;  // q, k, v, out
constexpr double kRouter = 64 * 4;
constexpr double kExpert = 3 * 64 * 64;
constexpr double kLogits = 64 * 100;
constexpr double kKvOfToken = 2 * 2 * 16;  // in a layer

TEST(StepWork, OfADecodeIsCountedByHand) {
  const StepCase one{ExpertParallel(), StepCase::Kind::kDecode, 3, 10};
  const std::vector<std::vector<double>> named = {{3, 4}};
  const StepWork work =
      WorkOf(one, ShapeOf(Even(), 1), KvType::kBf16, named, 20);
  // 21 positions are read, one of them written before.
  const double elements = 2 * (kAttention + kRouter) + (3 + 4) * kExpert +
                          2 * 3 * kKvOfToken * (21 + 1) + kLogits + 3 * 64;
  EXPECT_DOUBLE_EQ(work.bytes, 2 * elements);
  const double multiply_adds =
      3 * (2 * (kAttention + kRouter + 2 * kExpert + 2 * 64 * 21) + kLogits);
  EXPECT_DOUBLE_EQ(work.operations, 2 * multiply_adds);
}

TEST(StepWork, OfAPrefillReadsWeightsOnceAndComputesTheLastLayerForOneRow) {
  const StepCase one{ExpertParallel(), StepCase::Kind::kPrefill, 1, 8};
  const std::vector<std::vector<double>> named = {{4, 2}};
  const StepWork work =
      WorkOf(one, ShapeOf(Even(), 1), KvType::kFloat32, named, 0);
  const double elements =
      2 * (kAttention + kRouter) + (4 + 2) * kExpert + kLogits + 8 * 64;
  EXPECT_DOUBLE_EQ(work.bytes, 2 * elements + 4 * 2 * kKvOfToken * (8 + 8));
  const double first = 8 * (kAttention + kRouter + 2 * kExpert) +
                       2 * 64 * (8 * 9 / 2);  // each row sees those before it
  const double last =
      8 * (2 * 64 * 32) + (2 * 64 * 64) + kRouter + 2 * kExpert + 2 * 64 * 8;
  EXPECT_DOUBLE_EQ(work.operations, 2 * (first + last + kLogits));
}

// What is computed does not depend on the layout; what is read does: in EP
// every rank with rows has all dense weights, in TP each has a slice, but for
// the router.
TEST(StepWork, OfTwoRanks) {
  const ModelShape one_rank = ShapeOf(Even(), 1), two = ShapeOf(Even(), 2);
  StepCase one{ExpertParallel(), StepCase::Kind::kDecode, 4, 10};
  const StepWork alone = WorkOf(one, one_rank, KvType::kBf16, {{{4, 4}}}, 20);
  const StepWork ep = WorkOf(one, two, KvType::kBf16, {{{2, 2}, {2, 2}}}, 20);
  one.layout = TensorParallel(2);
  const StepWork tp = WorkOf(one, two, KvType::kBf16, {{{4, 4}, {4, 4}}}, 20);
  // The router of TP is computed on both.
  EXPECT_DOUBLE_EQ(ep.operations, alone.operations);
  EXPECT_DOUBLE_EQ(tp.operations, alone.operations + 2 * 4 * 2 * kRouter);
  EXPECT_DOUBLE_EQ(ep.bytes,
                   alone.bytes + 2 * (2 * (kAttention + kRouter) + kLogits));
  EXPECT_DOUBLE_EQ(tp.bytes, alone.bytes + 2 * (2 * kRouter + 4 * 64));
}

// Each group of two is as two ranks in TP with half of the sequences.
TEST(StepWork, OfTwoGroupsIsTwiceThatOfOne) {
  const StepCase both{Layout{2}, StepCase::Kind::kDecode, 4, 10};
  const StepCase one{TensorParallel(2), StepCase::Kind::kDecode, 2, 10};
  const StepWork of_both = WorkOf(both, ShapeOf(Even(), 4), KvType::kBf16,
                                  {{{2, 1}, {2, 1}, {2, 1}, {2, 1}}}, 20);
  const StepWork of_one =
      WorkOf(one, ShapeOf(Even(), 2), KvType::kBf16, {{{2, 1}, {2, 1}}}, 20);
  EXPECT_DOUBLE_EQ(of_both.bytes, 2 * of_one.bytes);
  EXPECT_DOUBLE_EQ(of_both.operations, 2 * of_one.operations);
}

// An EP rank without rows reads no dense weights.
TEST(StepWork, OfARankWithoutRows) {
  const StepCase one{ExpertParallel(), StepCase::Kind::kDecode, 1, 10};
  const StepWork alone =
      WorkOf(one, ShapeOf(Even(), 1), KvType::kBf16, {{{2, 2}}}, 20);
  const StepWork ep =
      WorkOf(one, ShapeOf(Even(), 2), KvType::kBf16, {{{1, 1}, {1, 1}}}, 20);
  EXPECT_DOUBLE_EQ(ep.bytes, alone.bytes);
}

TEST(PlaceSequences, GivesEachPageOnceAndRoomForAllSteps) {
  const ModelShape shape = ShapeOf(Even(), 4);
  for (const Layout layout : LayoutsOf(shape.attention)) {
    const StepCase one{layout, StepCase::Kind::kDecode, 5, 30};
    const int64_t pages = PagesOf(one, shape, 4);
    const auto placed =
        PlaceSequences(one, shape, static_cast<uint32_t>(pages), 4);
    ASSERT_THAT(placed, IsOk());
    std::set<std::pair<Rank, PageId>> seen;
    for (const RestoredSequence& sequence : *placed) {
      EXPECT_EQ(sequence.computed, 30u);
      EXPECT_EQ(sequence.admission.tokens.size(), 31u);
      EXPECT_GE(sequence.table.num_blocks * kPageTokens, 30 + 4 + 1);
      EXPECT_EQ(sequence.table.tables.size(), size_t(layout.tp_size));
      for (const RankTable& table : sequence.table.tables) {
        for (const PageId page : table.pages) {
          EXPECT_LT(page, pages);
          EXPECT_TRUE(seen.emplace(table.rank, page).second);
        }
      }
    }
  }
}

TEST(PlaceSequences, SaysHowManyPagesThereAreTooFew) {
  const StepCase one{ExpertParallel(), StepCase::Kind::kPrefill, 2, 64};
  EXPECT_THAT(PlaceSequences(one, ShapeOf(Even(), 1), 19, 1),
              StatusIs(absl::StatusCode::kResourceExhausted,
                       HasSubstr("take 20 pages of a rank, which has 19")));
}

}  // namespace
}  // namespace moebius
