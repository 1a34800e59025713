#include "coordinator/decisions/policy.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "tests/status_matchers.h"

namespace moebius {
namespace {

using testing::HasSubstr;

constexpr Layout kEp = ExpertParallel();
const Layout kTp = TensorParallel(2);
const PolicyConfig kConfig{.candidates = {kTp, kEp},
                           .thresholds = {8},
                           .hysteresis = 0.25,
                           .min_dwell_ms = 1000,
                           .smoothing_ms = 500};

// All layouts of eight ranks.
constexpr Layout kTp2{2}, kTp4{4}, kTp8{8};
const PolicyConfig kRow{.candidates = {kTp8, kTp4, kTp2, kEp},
                        .thresholds = {4, 8, 16},
                        .hysteresis = 0.25,
                        .min_dwell_ms = 1000,
                        .smoothing_ms = 500};

TEST(Policy, RefusesNonsenseNamingTheField) {
  struct Row {
    const char* word;
    void (*spoil)(PolicyConfig&);
  };
  for (const Row& row : {
           Row{"threshold 0", [](PolicyConfig& c) { c.thresholds[0] = 0; }},
           {"threshold 1",
            [](PolicyConfig& c) { c.thresholds[1] = c.thresholds[0]; }},
           {"threshold 2",
            [](PolicyConfig& c) {
              c.thresholds[2] = std::numeric_limits<double>::quiet_NaN();
            }},
           {"4 candidates with 2",
            [](PolicyConfig& c) { c.thresholds.pop_back(); }},
           {"0 candidates",
            [](PolicyConfig& c) {
              c.candidates.clear();
              c.thresholds.clear();
            }},
           {"candidate 0 has groups of 17",
            [](PolicyConfig& c) { c.candidates[0] = Layout{17}; }},
           {"candidate 3 has groups of 0",
            [](PolicyConfig& c) { c.candidates[3] = Layout{0}; }},
           {"candidate 2 has groups of 4",
            [](PolicyConfig& c) { c.candidates[2] = kTp4; }},
           {"hysteresis", [](PolicyConfig& c) { c.hysteresis = 1.0; }},
           {"min_dwell_ms", [](PolicyConfig& c) { c.min_dwell_ms = -1; }},
           {"smoothing_ms", [](PolicyConfig& c) { c.smoothing_ms = -1; }},
       }) {
    PolicyConfig config = kRow;
    row.spoil(config);
    EXPECT_THAT(Validate(config), StatusIs(absl::StatusCode::kInvalidArgument,
                                           HasSubstr(row.word)));
  }
  EXPECT_THAT(Validate(kConfig), IsOk());
  EXPECT_THAT(Validate(kRow), IsOk());
}

// A state that has dwelt long enough, with the given average at time 5000.
PolicyState Settled(double load, Layout layout) {
  return {true, load, 5000, layout, 0};
}

TEST(Policy, DoesWhatTheTableSays) {
  struct Row {
    std::string name;
    double load;  // average, and the load that comes in
    Layout current;
    std::optional<Layout> expected;
  };
  const std::vector<Row> rows = {
      {"TP, far below", 1, kTp, std::nullopt},
      {"TP, at the threshold, inside the hysteresis", 8, kTp, std::nullopt},
      {"TP, just below the upper edge", 9, kTp, std::nullopt},
      {"TP, at the upper edge", 10, kTp, kEp},
      {"TP, far above", 100, kTp, kEp},
      {"EP, far above", 100, kEp, std::nullopt},
      {"EP, at the threshold, inside the hysteresis", 8, kEp, std::nullopt},
      {"EP, just above the lower edge", 7, kEp, std::nullopt},
      {"EP, at the lower edge", 6, kEp, kTp},
      {"EP, idle", 0, kEp, kTp},
  };
  for (const Row& row : rows) {
    const auto decision =
        Decide(Settled(row.load, row.current), 5010,
               static_cast<int64_t>(row.load), row.current, kConfig);
    EXPECT_EQ(decision.switch_to, row.expected) << row.name;
  }
}

TEST(Policy, AmongManyItDoesWhatTheTableSays) {
  struct Row {
    std::string name;
    double load;
    Layout current;
    std::optional<Layout> expected;
  };
  const std::vector<Row> rows = {
      {"tp, idle", 0, kTp8, std::nullopt},
      {"tp, below its edge", 4.9, kTp8, std::nullopt},
      {"tp, at its edge", 5, kTp8, kTp4},
      {"tp, at the next threshold, not its edge", 9, kTp8, kTp4},
      {"tp, beyond two edges", 10, kTp8, kTp2},
      {"tp, beyond all edges", 20, kTp8, kEp},
      {"tp4, at the lower edge", 3, kTp4, kTp8},
      {"tp4, above the lower edge", 3.1, kTp4, std::nullopt},
      {"tp4, below the upper edge", 9.9, kTp4, std::nullopt},
      {"tp4, at the upper edge", 10, kTp4, kTp2},
      {"tp2, at the lower edge", 6, kTp2, kTp4},
      {"tp2, beyond two edges down", 3, kTp2, kTp8},
      {"tp2, between", 12, kTp2, std::nullopt},
      {"ep, at its edge", 12, kEp, kTp2},
      {"ep, beyond two edges", 6, kEp, kTp4},
      {"ep, idle", 0, kEp, kTp8},
      {"ep, far above", 1000, kEp, std::nullopt},
  };
  for (const Row& row : rows) {
    PolicyConfig config = kRow;
    config.smoothing_ms = 0;
    PolicyState state = Settled(row.load, row.current);
    state.load = row.load;
    EXPECT_EQ(Outlook(state, 5010, row.current, config).wants, row.expected)
        << row.name;
  }
}

// Somebody chose a layout by hand and then left the choice to the load.
TEST(Policy, ALayoutThatIsNoCandidateIsLeft) {
  const PolicyConfig config{.candidates = {kTp8, kTp2}, .thresholds = {8}};
  for (const Layout current : {kTp4, kEp}) {
    EXPECT_EQ(Decide(Settled(7, current), 5010, 7, current, config).switch_to,
              kTp8);
    EXPECT_EQ(Decide(Settled(8, current), 5010, 8, current, config).switch_to,
              kTp2);
  }
  const PolicyConfig only{.candidates = {kTp2}, .thresholds = {}};
  EXPECT_EQ(Decide(Settled(0, kEp), 5010, 0, kEp, only).switch_to, kTp2);
  EXPECT_EQ(Decide(Settled(0, kTp2), 5010, 0, kTp2, only).switch_to,
            std::nullopt);
}

TEST(Policy, OneCandidateLeavesNothingToChoose) {
  const PolicyConfig config{.candidates = {kEp}, .thresholds = {}};
  EXPECT_THAT(Validate(config), IsOk());
  EXPECT_EQ(Decide(Settled(0, kEp), 9000, 0, kEp, config).switch_to,
            std::nullopt);
}

TEST(Policy, DwellsAfterTheStartAChangeAndAProposal) {
  // The first look only takes notes.
  auto decision = Decide({}, 100, 50, kTp, kConfig);
  EXPECT_EQ(decision.switch_to, std::nullopt);
  EXPECT_EQ(Decide(decision.next, 1099, 50, kTp, kConfig).switch_to,
            std::nullopt);
  decision = Decide(decision.next, 1100, 50, kTp, kConfig);
  EXPECT_EQ(decision.switch_to, kEp);
  // The proposal was refused somewhere: not again before a dwell.
  decision = Decide(decision.next, 1200, 50, kTp, kConfig);
  EXPECT_EQ(decision.switch_to, std::nullopt);
  EXPECT_EQ(Decide(decision.next, 2100, 50, kTp, kConfig).switch_to, kEp);
  // A switch by somebody else starts a dwell too.
  decision = Decide(decision.next, 5000, 0, kEp, kConfig);
  EXPECT_EQ(decision.switch_to, std::nullopt);
  decision = Decide(decision.next, 5999, 0, kEp, kConfig);
  EXPECT_EQ(decision.switch_to, std::nullopt);
  EXPECT_EQ(Decide(decision.next, 6000, 0, kEp, kConfig).switch_to, kTp);
}

TEST(Policy, AverageDoesNotDependOnHowOftenWeLook) {
  const PolicyState start = Settled(0, kTp);
  const double once = Decide(start, 5400, 9, kTp, kConfig).next.load;
  PolicyState state = start;
  for (int64_t t = 5001; t <= 5400; ++t) {
    state = Decide(state, t, 9, kTp, kConfig).next;
  }
  EXPECT_NEAR(once, state.load, 1e-9);
  EXPECT_NEAR(once, 9 * (1 - std::exp(-400.0 / 500.0)), 1e-9);
}

TEST(Policy, ClockStepsBackCountAsNoTime) {
  const auto decision = Decide(Settled(4, kTp), 10, 1000, kTp, kConfig);
  EXPECT_EQ(decision.next.load, 4);
  EXPECT_EQ(decision.next.updated_ms, 5000);
}

TEST(Policy, ShortBurstsDoNotSwitch) {
  PolicyState state = Settled(2, kTp);
  // 30 ms of 64 requests every second, 2 otherwise.
  for (int64_t t = 5010; t < 60000; t += 10) {
    const auto decision =
        Decide(state, t, t % 1000 < 30 ? 64 : 2, kTp, kConfig);
    ASSERT_EQ(decision.switch_to, std::nullopt) << t;
    state = decision.next;
  }
}

// Random rows of candidates: among 2 to 5 of the divisors of 16.
PolicyConfig RandomConfig(std::mt19937& random) {
  PolicyConfig config;
  for (const int width : {16, 8, 4, 2, 1}) {
    if (random() % 3 != 0) config.candidates.push_back(Layout{width});
  }
  if (config.candidates.size() < 2) config.candidates = {kTp8, kEp};
  double threshold = 0;
  for (size_t i = 1; i < config.candidates.size(); ++i) {
    threshold += 1 + random() % 10;
    config.thresholds.push_back(threshold);
  }
  config.hysteresis = static_cast<double>(random() % 10) / 10;
  config.min_dwell_ms = 1000;
  config.smoothing_ms = static_cast<int64_t>(random() % 3) * 250;
  return config;
}

TEST(Policy, WalkNeverFlapsFasterThanTheDwell) {
  int switches = 0;
  for (uint32_t seed = 0; seed < 100; ++seed) {
    std::mt19937 random(seed);
    const PolicyConfig config = RandomConfig(random);
    ASSERT_THAT(Validate(config), IsOk());
    PolicyState state;
    Layout layout = config.candidates[random() % config.candidates.size()];
    int64_t now = 0, last_switch = 0, most = 1;
    for (int i = 0; i < 3000; ++i) {
      now += static_cast<int64_t>(random() % 40);
      if (random() % 50 == 0) most = 1 + static_cast<int64_t>(random() % 40);
      const auto decision = Decide(
          state, now, static_cast<int64_t>(random() % most), layout, config);
      state = decision.next;
      if (!decision.switch_to) continue;
      ASSERT_NE(*decision.switch_to, layout);
      ASSERT_NE(std::find(config.candidates.begin(), config.candidates.end(),
                          *decision.switch_to),
                config.candidates.end());
      ASSERT_GE(now - last_switch, config.min_dwell_ms) << "seed " << seed;
      last_switch = now;
      // What is proposed is not taken back at the same load.
      if (config.hysteresis > 0) {
        ASSERT_EQ(Outlook(state, now, *decision.switch_to, config).wants,
                  std::nullopt)
            << "seed " << seed;
      }
      if (random() % 4 != 0) layout = *decision.switch_to;  // else refused
      ++switches;
    }
  }
  EXPECT_GT(switches, 100);
}

TEST(Policy, ConstantLoadSwitchesAtMostOnce) {
  for (uint32_t seed = 0; seed < 40; ++seed) {
    std::mt19937 random(seed);
    PolicyConfig config = seed == 0 ? kConfig : RandomConfig(random);
    if (config.hysteresis == 0) config.hysteresis = 0.1;
    const size_t last = config.candidates.size() - 1;
    for (int64_t load = 0; load < 60; ++load) {
      for (const Layout start : config.candidates) {
        PolicyState state;
        Layout layout = start;
        int switches = 0;
        for (int64_t t = 0; t < 6000; t += 70) {
          const auto decision = Decide(state, t, load, layout, config);
          state = decision.next;
          if (decision.switch_to) {
            layout = *decision.switch_to;
            ++switches;
          }
        }
        EXPECT_LE(switches, 1) << load;
        if (static_cast<double>(load) >= UpperEdge(config, last - 1)) {
          EXPECT_EQ(layout, config.candidates[last]) << load;
        }
        if (static_cast<double>(load) <= LowerEdge(config, 0)) {
          EXPECT_EQ(layout, config.candidates[0]) << load;
        }
      }
    }
  }
}

TEST(Policy, TheOutlookIsWhatADecisionWouldBe) {
  struct Row {
    const char* name;
    double load;
    Layout current;
    int64_t now_ms;
    PolicyOutlook expected;
  };
  const int64_t dwell_ms = kConfig.min_dwell_ms;
  const PolicyState settled = Settled(1, kEp);
  const int64_t from_ms = settled.dwell_from_ms;
  for (const Row& row : {
           Row{"EP, low, dwell over", 1, kEp, from_ms + dwell_ms, {kTp, 0}},
           {"EP, low, in the dwell", 1, kEp, from_ms + dwell_ms - 7, {kTp, 7}},
           {"EP, high", 100, kEp, from_ms + dwell_ms, {std::nullopt, 0}},
           {"TP, high", 100, kTp, from_ms + dwell_ms, {kEp, 0}},
           {"TP, low", 1, kTp, from_ms + dwell_ms, {std::nullopt, 0}},
           {"a clock that went back", 1, kEp, from_ms - 50, {kTp, dwell_ms}},
       }) {
    PolicyState state = settled;
    state.load = row.load;
    state.layout = row.current;
    EXPECT_EQ(Outlook(state, row.now_ms, row.current, kConfig), row.expected)
        << row.name;
  }
  // A layout that it has not seen yet will start a dwell.
  EXPECT_EQ(Outlook(settled, from_ms + dwell_ms, kTp, kConfig).dwell_left_ms,
            dwell_ms);
  EXPECT_EQ(Outlook({}, 5000, kEp, kConfig), PolicyOutlook());
}

}  // namespace
}  // namespace moebius
