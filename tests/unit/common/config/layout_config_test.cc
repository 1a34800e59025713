#include "common/config/layout_config.h"

#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "tests/status_matchers.h"

namespace moebius {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

const LayoutChoice kTp2 = LayoutChoice::Of(Layout{2});
const LayoutChoice kTp4 = LayoutChoice::Of(Layout{4});
const LayoutChoice kTp8 = LayoutChoice::Of(Layout{8});

Config Workers(int count) {
  Config config;
  config.workers.count = count;
  return config;
}

TEST(LayoutChoice, NamesReadBackAndNothingElseDoes) {
  for (const char* name : {"ep", "tp", "auto", "tp2", "tp4", "tp16"}) {
    const auto choice = ParseLayoutChoice(name);
    ASSERT_TRUE(choice.has_value()) << name;
    EXPECT_EQ(LayoutChoiceName(*choice), name);
  }
  for (const char* name : {"", "tp0", "tp1", "tp17", "tp02", "tp-2", "tp2 ",
                           "TP", "tp4x", "ep2", "tp99999999999999999999"}) {
    EXPECT_FALSE(ParseLayoutChoice(name).has_value()) << name;
  }
}

TEST(LayoutChoice, TwoNamesOfOneLayoutAreOneChoiceInAGroup) {
  EXPECT_EQ(kTp8.InGroup(8), LayoutChoice::kTp);
  EXPECT_EQ(kTp4.InGroup(8), kTp4);
  EXPECT_EQ(LayoutChoice::kTp.InGroup(8), LayoutChoice::kTp);
  EXPECT_EQ(LayoutChoice::kTp.InGroup(1), LayoutChoice::kEp);
  EXPECT_EQ(LayoutChoice::kAuto.InGroup(1), LayoutChoice::kAuto);
  EXPECT_EQ(LayoutChoice::kTp.LayoutIn(8), Layout{8});
  EXPECT_EQ(kTp2.LayoutIn(8), Layout{2});
}

TEST(LayoutConfig, CandidatesStandFromTheWidestToTheNarrowest) {
  Config config = Workers(8);
  EXPECT_THAT(CandidateLayouts(config), ElementsAre(Layout{8}, Layout{1}));
  config.layout.candidates = {LayoutChoice::kEp, kTp8, kTp2, LayoutChoice::kTp};
  EXPECT_THAT(CandidateLayouts(config),
              ElementsAre(Layout{8}, Layout{2}, Layout{1}));
  EXPECT_THAT(CandidateLayouts(Workers(1)), ElementsAre(Layout{1}));
}

TEST(LayoutConfig, CandidatesAreResidentUnlessOthersAre) {
  Config config = Workers(8);
  config.layout.candidates = {LayoutChoice::kEp, kTp4};
  EXPECT_THAT(ResidentLayouts(config), ElementsAre(Layout{4}, Layout{1}));
  config.layout.resident = {kTp2};
  EXPECT_THAT(ResidentLayouts(config), ElementsAre(Layout{2}));
  config.layout.resident->clear();
  EXPECT_THAT(ResidentLayouts(config), IsEmpty());
}

TEST(LayoutConfig, TheLoadBeginsWithTheWidestCandidate) {
  Config config = Workers(8);
  EXPECT_EQ(InitialLayout(config), Layout{1});
  config.layout.choice = kTp4;
  EXPECT_EQ(InitialLayout(config), Layout{4});
  config.layout.choice = LayoutChoice::kAuto;
  EXPECT_EQ(InitialLayout(config), Layout{8});
  config.layout.candidates = {LayoutChoice::kEp, kTp2};
  EXPECT_EQ(InitialLayout(config), Layout{2});
}

TEST(LayoutConfig, DefaultThresholdsGiveEachGroupOfALayoutAsMuch) {
  Config config = Workers(8);
  EXPECT_THAT(LayoutThresholds(config), ElementsAre(16));
  config.layout.candidates = {LayoutChoice::kEp, kTp2, kTp4, LayoutChoice::kTp};
  EXPECT_THAT(LayoutThresholds(config), ElementsAre(4, 8, 16));
  config.layout.switch_threshold = 100;
  EXPECT_THAT(LayoutThresholds(config), ElementsAre(25, 50, 100));
  config.layout.thresholds = {3, 4, 5};
  EXPECT_THAT(LayoutThresholds(config), ElementsAre(3, 4, 5));
  EXPECT_THAT(LayoutThresholds(Workers(1)), IsEmpty());
}

TEST(LayoutConfig, WhatAGroupDoesNotHaveIsRefusedByItsKey) {
  const std::vector<Layout> there = {{1}, {2}, {8}};
  const auto refused = [](const std::string& text) {
    return StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr(text));
  };
  Config config = Workers(8);
  EXPECT_THAT(CheckLayouts(config, there), IsOk());
  config.layout.choice = kTp4;
  EXPECT_THAT(CheckLayouts(config, there),
              refused("key 'layout.choice' names tp4, which 8 workers do not "
                      "have: allowed is ep, tp2, tp"));
  config = Workers(8);
  config.layout.candidates = {LayoutChoice::kEp, kTp4};
  EXPECT_THAT(CheckLayouts(config, there), refused("'layout.candidates'"));
  config = Workers(8);
  config.layout.resident = {kTp4};
  EXPECT_THAT(CheckLayouts(config, there), refused("'layout.resident'"));
  config = Workers(8);
  config.layout.thresholds = {3, 4};
  EXPECT_THAT(CheckLayouts(config, there),
              refused("'layout.thresholds' has 2 numbers"));
  config.layout.candidates.push_back(kTp2);
  EXPECT_THAT(CheckLayouts(config, there), IsOk());
}

}  // namespace
}  // namespace moebius
