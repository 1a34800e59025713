#include "coordinator/decisions/experts_of_group.h"

#include <vector>

#include "gtest/gtest.h"
#include "tests/status_matchers.h"

namespace moebius {
namespace {

using testing::HasSubstr;

constexpr int kLayers = 3;
constexpr Layout kEp = ExpertParallel();
constexpr Layout kTp = TensorParallel(2);
constexpr UnfinishedSwitch kSwitch{Epoch{5}, kEp, kTp};

// A rank with weights, whose last switch was `epoch`.
Stand With(uint64_t epoch, Side side, int layers_done) {
  Stand stand;
  stand.loaded = true;
  stand.switch_epoch = Epoch{epoch};
  stand.side = side;
  stand.layers_done = layers_done;
  return stand;
}
// New memory, filled in the midst of a switch or not at all.
Stand Without(uint64_t epoch, Side side, int layers_done) {
  Stand stand = With(epoch, side, layers_done);
  stand.loaded = false;
  return stand;
}

struct Row {
  const char* name;
  std::vector<Stand> stands;
  std::optional<UnfinishedSwitch> unfinished;
  ExpertsState expected;
};

std::vector<Row> Rows() {
  const Side low = Side::kLow, high = Side::kHigh;
  return {
      {"nobody has weights",
       {Without(0, high, 0), Without(0, low, 0)},
       {},
       ExpertsState::AtHome(kTp)},
      {"as they were loaded",
       {With(0, high, 0), With(0, high, 0)},
       {},
       ExpertsState::At(kTp, high)},
      {"a switch is done: the side has turned",
       {With(4, low, kLayers), With(4, low, kLayers)},
       {},
       ExpertsState::At(kTp, high)},
      {"one was loaded since",
       {With(4, low, kLayers), With(0, high, 0)},
       {},
       ExpertsState::At(kTp, high)},
      {"one is empty",
       {With(4, low, kLayers), Without(0, low, 0)},
       {},
       ExpertsState::At(kTp, high)},
      {"the switch has begun nowhere",
       {With(4, low, kLayers), With(4, low, kLayers)},
       kSwitch,
       {kEp, kTp, high, 0}},
      {"the highest record counts",
       {With(5, high, 1), With(5, high, 2)},
       kSwitch,
       {kEp, kTp, high, 2}},
      {"one has not begun",
       {With(5, high, 1), With(4, low, kLayers)},
       kSwitch,
       {kEp, kTp, high, 1}},
      {"one was filled in its midst and is not told to go on yet",
       {With(4, low, kLayers), Without(5, high, 1)},
       kSwitch,
       {kEp, kTp, high, 1}},
      {"all layers are done, pages are not",
       {With(5, high, kLayers), With(5, high, 2)},
       kSwitch,
       {kEp, kTp, high, kLayers}},
      {"nobody has weights in a switch",
       {Without(4, high, kLayers), Without(0, high, 0)},
       kSwitch,
       {kEp, kTp, low, 0}},
  };
}

TEST(ExpertsOfGroup, IsWhatTheRanksWithWeightsSay) {
  for (const Row& row : Rows()) {
    const auto state = ExpertsOfGroup(row.stands, kLayers, kTp, row.unfinished);
    ASSERT_THAT(state, IsOk()) << row.name;
    EXPECT_EQ(*state, row.expected) << row.name;
  }
}

TEST(ExpertsOfGroup, RanksOnDifferentSidesAreDataLoss) {
  const auto data_loss =
      StatusIs(absl::StatusCode::kDataLoss, HasSubstr("rank 1"));
  for (const auto& stands :
       {std::vector{With(0, Side::kLow, 0), With(0, Side::kHigh, 0)},
        std::vector{With(4, Side::kLow, kLayers), With(0, Side::kLow, 0)}}) {
    EXPECT_THAT(ExpertsOfGroup(stands, kLayers, kTp, std::nullopt), data_loss);
  }
  EXPECT_THAT(
      ExpertsOfGroup({With(5, Side::kHigh, 1), With(4, Side::kHigh, kLayers)},
                     kLayers, kTp, kSwitch),
      data_loss);
}

// A dense model has no layers that could lie anywhere.
TEST(ExpertsOfGroup, WithoutMoeLayersNothingTurns) {
  const auto state = ExpertsOfGroup({With(4, Side::kLow, 0)}, 0, kTp, kSwitch);
  ASSERT_THAT(state, IsOk());
  EXPECT_EQ(*state, (ExpertsState{kEp, kTp, Side::kLow, 0}));
}

}  // namespace
}  // namespace moebius
