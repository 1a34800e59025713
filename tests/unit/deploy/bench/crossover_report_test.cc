#include "deploy/bench/crossover_report.h"

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace moebius {
namespace {

using Json = nlohmann::json;
using testing::HasSubstr;
using testing::Not;

Json Case(const char* layout, int streams, double rate, int output = 8) {
  return {{"layout", layout},
          {"streams", streams},
          {"output_tokens", output},
          {"decode_tokens_per_s", rate}};
}

TEST(CrossoverReport, SaysNothingOfLessThanTwoLayoutsAtTwoNumbersOfStreams) {
  for (const Json& cases :
       {Json::array(), Json{Case("ep", 1, 5), Case("ep", 2, 5)},
        Json{Case("ep", 1, 5), Case("tp", 1, 5)},
        // Ended early in one of them; a prefill; a layout that is not there.
        Json{Case("ep", 1, 5), Case("tp", 1, 5), Case("ep", 2, 5),
             Case("tp", 2, 0)},
        Json{Case("ep", 1, 5), Case("tp", 1, 5), Case("ep", 2, 5),
             Case("tp", 2, 5, 1)},
        Json{Case("ep", 1, 5), Case("tp3", 1, 5), Case("ep", 2, 5),
             Case("tp3", 2, 5)}}) {
    Json result = {{"cases", cases}};
    EXPECT_EQ(AddCrossovers(result, 2), "") << cases;
    EXPECT_FALSE(result.contains("crossovers"));
  }
}

TEST(CrossoverReport, OfTwoLayoutsShowsTheRatio) {
  Json result = {{"cases",
                  {Case("tp", 4, 40), Case("tp", 16, 40), Case("ep", 4, 20),
                   Case("ep", 16, 80)}}};
  const std::string text = AddCrossovers(result, 2);
  EXPECT_THAT(text, HasSubstr("Decode in both layouts:\n"));
  EXPECT_THAT(text, HasSubstr("ep / tp"));
  EXPECT_THAT(text, HasSubstr("EP is faster from 16 streams on, TP at 4; they "
                              "would be equal at about 8.\n"));
  EXPECT_EQ(result["crossovers"], Json::parse(R"([{
      "wide": "tp", "narrow": "ep", "wide_up_to": 4, "narrow_from": 16,
      "estimate": 8.0}])"));
}

TEST(CrossoverReport, OfMoreNamesTheCrossingsOfNeighboursWidestFirst) {
  Json result = {{"cases", Json::array()}};
  const struct {
    int streams;
    double ep, tp2, tp;
  } kRates[] = {{1, 10, 20, 30}, {4, 30, 50, 40}, {16, 90, 60, 50}};
  for (const auto& one : kRates) {
    result["cases"].push_back(Case("ep", one.streams, one.ep));
    result["cases"].push_back(Case("tp", one.streams, one.tp));
    result["cases"].push_back(Case("tp2", one.streams, one.tp2));
  }
  result["cases"].push_back(Case("ep", 64, 100));  // cut short behind it
  const std::string text = AddCrossovers(result, 4);
  EXPECT_THAT(text, HasSubstr("Decode in all layouts:\n"));
  EXPECT_THAT(text, Not(HasSubstr(" / ")));
  const size_t first = text.find("TP2 is faster from 4 streams on, TP at 1;");
  const size_t second = text.find("EP is faster from 16 streams on, TP2 at 4;");
  EXPECT_NE(first, std::string::npos) << text;
  EXPECT_NE(second, std::string::npos) << text;
  EXPECT_LT(first, second);
  ASSERT_EQ(result["crossovers"].size(), 2u);
  EXPECT_EQ(result["crossovers"][0]["narrow"], "tp2");
  EXPECT_EQ(result["crossovers"][1]["wide"], "tp2");
}

}  // namespace
}  // namespace moebius
