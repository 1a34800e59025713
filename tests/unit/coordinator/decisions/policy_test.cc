#include "coordinator/decisions/policy.h"

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

const PolicyConfig kConfig{.num_ranks = 2,
                           .threshold = 8,
                           .hysteresis = 0.25,
                           .min_dwell_ms = 1000,
                           .smoothing_ms = 500};
constexpr Layout kEp = ExpertParallel();
const Layout kTp = TensorParallel(2);

TEST(Policy, RefusesNonsenseNamingTheField) {
  PolicyConfig config = kConfig;
  config.threshold = 0;
  EXPECT_THAT(Validate(config), StatusIs(absl::StatusCode::kInvalidArgument,
                                         HasSubstr("switch_threshold")));
  config = kConfig;
  config.threshold = std::numeric_limits<double>::quiet_NaN();
  EXPECT_FALSE(Validate(config).ok());
  config = kConfig;
  config.hysteresis = 1.0;
  EXPECT_THAT(Validate(config), StatusIs(absl::StatusCode::kInvalidArgument,
                                         HasSubstr("hysteresis")));
  config = kConfig;
  config.min_dwell_ms = -1;
  EXPECT_THAT(Validate(config), StatusIs(absl::StatusCode::kInvalidArgument,
                                         HasSubstr("min_dwell_ms")));
  config = kConfig;
  config.num_ranks = 0;
  EXPECT_FALSE(Validate(config).ok());
  EXPECT_THAT(Validate(kConfig), IsOk());
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

TEST(Policy, OneRankHasNothingToChoose) {
  PolicyConfig config = kConfig;
  config.num_ranks = 1;
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

TEST(Policy, WalkNeverFlapsFasterThanTheDwell) {
  int switches = 0;
  for (uint32_t seed = 0; seed < 100; ++seed) {
    std::mt19937 random(seed);
    PolicyState state;
    Layout layout = random() % 2 ? kEp : kTp;
    int64_t now = 0, last_switch = 0, most = 1;
    for (int i = 0; i < 3000; ++i) {
      now += static_cast<int64_t>(random() % 40);
      if (random() % 50 == 0) most = 1 + static_cast<int64_t>(random() % 40);
      const auto decision = Decide(
          state, now, static_cast<int64_t>(random() % most), layout, kConfig);
      state = decision.next;
      if (!decision.switch_to) continue;
      ASSERT_NE(*decision.switch_to, layout);
      ASSERT_GE(now - last_switch, kConfig.min_dwell_ms) << "seed " << seed;
      last_switch = now;
      if (random() % 4 != 0) layout = *decision.switch_to;  // else refused
      ++switches;
    }
  }
  EXPECT_GT(switches, 100);
}

TEST(Policy, ConstantLoadSwitchesAtMostOnce) {
  for (int64_t load = 0; load < 24; ++load) {
    for (const Layout start : {kEp, kTp}) {
      PolicyState state;
      Layout layout = start;
      int switches = 0;
      for (int64_t t = 0; t < 60000; t += 7) {
        const auto decision = Decide(state, t, load, layout, kConfig);
        state = decision.next;
        if (decision.switch_to) {
          layout = *decision.switch_to;
          ++switches;
        }
      }
      EXPECT_LE(switches, 1) << load;
      if (load >= 10) {
        EXPECT_EQ(layout, kEp) << load;
      }
      if (load <= 6) {
        EXPECT_EQ(layout, kTp) << load;
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
