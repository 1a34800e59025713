#include "deploy/bench/switch_report.h"

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace moebius {
namespace {

using testing::HasSubstr;

MeasuredSwitch Switch(const char* from, const char* to, uint64_t weight_bytes,
                      double switch_ms, double gap_ms) {
  MeasuredSwitch one;
  one.figures.from = from;
  one.figures.to = to;
  one.figures.weight_bytes = weight_bytes;
  one.figures.switch_ms = switch_ms;
  one.gap_ms = gap_ms;
  return one;
}

TEST(SwitchReport, OfNoSwitchIsEmpty) {
  EXPECT_EQ(SwitchesByLayouts({}), nlohmann::json::array());
}

TEST(SwitchReport, KeepsPairsApartInTheOrderOfTheirFirst) {
  const nlohmann::json by_layouts = SwitchesByLayouts(
      {Switch("ep", "tp2", 2'000'000, 10, 11), Switch("tp2", "tp", 500, 5, 6),
       Switch("tp", "ep", 700, 7, 8), Switch("ep", "tp2", 2'000'000, 12, 13),
       Switch("ep", "tp2", 2'000'000, 30, 60)});
  ASSERT_EQ(by_layouts.size(), 3u);
  EXPECT_EQ(by_layouts[0]["from"], "ep");
  EXPECT_EQ(by_layouts[0]["to"], "tp2");
  EXPECT_EQ(by_layouts[0]["switches"], 3);
  EXPECT_EQ(by_layouts[0]["switch_ms"], 12.0);
  EXPECT_EQ(by_layouts[0]["longest_gap_ms"], 13.0);
  EXPECT_EQ(by_layouts[1]["from"], "tp2");
  EXPECT_EQ(by_layouts[2]["weight_bytes"], 700.0);
  const std::string text = DescribeSwitchesByLayouts(by_layouts);
  EXPECT_THAT(text, HasSubstr("ep to tp2"));
  EXPECT_LT(text.find("tp2 to tp"), text.find("tp to ep"));
}

}  // namespace
}  // namespace moebius
