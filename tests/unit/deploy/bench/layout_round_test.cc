#include "deploy/bench/layout_round.h"

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/status_matchers.h"

namespace moebius {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

TEST(LayoutRound, RefusesWhatAGroupCannotGoRound) {
  const struct {
    std::vector<std::string> names;
    int num_ranks;
    const char* why;
  } kCases[] = {
      {{"ep", "tp"}, 1, "a group of 1 worker has one layout only"},
      {{"ep", "tp"}, 0, "a group of 0 worker has one layout only"},
      {{"ep"}, 4, "two layouts at least"},
      {{}, 4, "two layouts at least"},
      {{"ep", "tp", "ep"}, 4, "ep of 4 workers is named twice"},
      {{"tp", "ep", "tp4"}, 4, "tp of 4 workers is named twice"},
      {{"ep", "tp3"}, 4, "there are ep, tp2 and tp"},
      {{"ep", "auto"}, 4, "there are ep, tp2 and tp"},
  };
  for (const auto& one : kCases) {
    EXPECT_THAT(
        LayoutRound::Of(one.names, one.num_ranks),
        StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr(one.why)));
  }
}

TEST(LayoutRound, ComesBackToTheFirst) {
  const auto round = LayoutRound::Of({"ep", "tp2", "tp4"}, 4);
  ASSERT_THAT(round, IsOk());
  EXPECT_EQ(round->size(), 3u);
  const char* const kExpected[] = {"ep", "tp2", "tp", "ep", "tp2"};
  for (size_t i = 0; i < std::size(kExpected); ++i) {
    EXPECT_EQ(round->After(i), kExpected[i]);
  }
}

TEST(LayoutRound, GroupsOfItsOwnHaveAllOfThemResidentUnlessToldWhich) {
  const auto round = LayoutRound::Of({"tp2", "ep"}, 4);
  ASSERT_THAT(round, IsOk());
  Config config;
  EXPECT_THAT(round->ServeArgs(config), ElementsAre("--layout", "tp2", "--set",
                                                    "layout.resident=tp2 ep"));
  config.layout.resident.emplace();
  EXPECT_THAT(round->ServeArgs(config), ElementsAre("--layout", "tp2"));
}

}  // namespace
}  // namespace moebius
