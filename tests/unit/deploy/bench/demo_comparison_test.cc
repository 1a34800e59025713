#include "deploy/bench/demo_comparison.h"

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/status_matchers.h"

namespace moebius {
namespace {

using testing::HasSubstr;

CompletionResult Stream(std::vector<int64_t> tokens, std::string text) {
  CompletionResult result;
  result.token_ids = std::move(tokens);
  result.text = std::move(text);
  result.finish_reason = "length";
  return result;
}

TEST(DemoNumerics, AreExactUnlessFastIsAskedFor) {
  EXPECT_EQ(DemoNumerics(NumericsChoice::kAuto), NumericsChoice::kExact);
  EXPECT_EQ(DemoNumerics(NumericsChoice::kExact), NumericsChoice::kExact);
  EXPECT_EQ(DemoNumerics(NumericsChoice::kFast), NumericsChoice::kFast);
}

TEST(DemoComparison, AStreamThatIsNotWholeIsAnErrorOnEitherSide) {
  const std::vector<CompletionResult> whole = {Stream({1, 2, 3}, "abc")};
  const std::vector<CompletionResult> part = {Stream({1, 2}, "ab")};
  const auto error = StatusIs(absl::StatusCode::kInternal,
                              HasSubstr("stream 0 has 2 tokens, not 3"));
  EXPECT_THAT(CompareStreams(part, whole, 3), error);
  EXPECT_THAT(CompareStreams(whole, part, 3), error);
}

TEST(DemoComparison, TheSameTokensMayHaveNoOtherTextOrEnd) {
  const std::vector<CompletionResult> ours = {Stream({1, 2}, "ab")};
  std::vector<CompletionResult> quiet = {Stream({1, 2}, "aB")};
  const auto error = StatusIs(absl::StatusCode::kInternal,
                              HasSubstr("stream 0 has the tokens"));
  EXPECT_THAT(CompareStreams(ours, quiet, 2), error);
  quiet[0].text = "ab";
  quiet[0].finish_reason = "stop";
  EXPECT_THAT(CompareStreams(ours, quiet, 2), error);
}

TEST(DemoComparison, CountsDifferentStreamsAndNamesTheEarliestToken) {
  const std::vector<CompletionResult> ours = {Stream({1, 2, 3}, "abc"),
                                              Stream({4, 5, 6}, "def"),
                                              Stream({7, 8, 9}, "ghi")};
  const std::vector<CompletionResult> quiet = {Stream({1, 2, 9}, "abi"),
                                               Stream({4, 5, 6}, "def"),
                                               Stream({7, 1, 9}, "gai")};
  const auto found = CompareStreams(ours, quiet, 3);
  ASSERT_THAT(found, IsOk());
  EXPECT_EQ(DescribeDifferences(*found),
            "2 of 3 differ, the first from token 1 on");
  EXPECT_THAT(CheckDifferences(*found, NumericsChoice::kFast, "tp"), IsOk());
  EXPECT_THAT(
      CheckDifferences(*found, NumericsChoice::kExact, "tp"),
      StatusIs(absl::StatusCode::kInternal,
               HasSubstr("a quiet run in tp, 2 of 3 differ, the first from "
                         "token 1 on")));
}

TEST(DemoComparison, EqualStreamsAreEqualWhateverTheNumerics) {
  const std::vector<CompletionResult> ours = {Stream({1}, "a"),
                                              Stream({2}, "b")};
  const auto found = CompareStreams(ours, ours, 1);
  ASSERT_THAT(found, IsOk());
  EXPECT_EQ(DescribeDifferences(*found), "all 2 equal, token for token");
  for (const auto numerics : {NumericsChoice::kExact, NumericsChoice::kFast}) {
    EXPECT_THAT(CheckDifferences(*found, numerics, "ep"), IsOk());
  }
}

}  // namespace
}  // namespace moebius
