// Ends that need no text.
#include "coordinator/engine/token_ends.h"

#include <vector>

#include "gtest/gtest.h"

namespace moebius {
namespace {

StopCriteria Stops() {
  StopCriteria stop;
  stop.max_tokens = 4;
  stop.eos_ids = {1};
  stop.stop_token_ids = {2};
  return stop;
}

std::vector<TokenEnd> Take(const StopCriteria& stop,
                           const std::vector<int32_t>& tokens) {
  TokenEnds ends(stop);
  std::vector<TokenEnd> all;
  for (const int32_t token : tokens) all.push_back(ends.Take(token));
  return all;
}

using enum TokenEnd;

TEST(TokenEnds, NoStopBeforeMinTokens) {
  StopCriteria stop = Stops();
  stop.min_tokens = 3;
  EXPECT_EQ(Take(stop, {1, 2, 2}),
            (std::vector<TokenEnd>{kNone, kNone, kStopToken}));
}

TEST(TokenEnds, AnIgnoredEndOfTextIsATokenLikeOthers) {
  StopCriteria stop = Stops();
  stop.ignore_eos = true;
  EXPECT_EQ(Take(stop, {1, 1}), (std::vector<TokenEnd>{kNone, kNone}));
  EXPECT_EQ(Take(Stops(), {5, 1}), (std::vector<TokenEnd>{kNone, kEos}));
}

TEST(TokenEnds, TheLastTokenMayBeAStopAndIsOneThen) {
  EXPECT_EQ(Take(Stops(), {5, 5, 5, 5}).back(), kLength);
  EXPECT_EQ(Take(Stops(), {5, 5, 5, 2}).back(), kStopToken);
}

}  // namespace
}  // namespace moebius
