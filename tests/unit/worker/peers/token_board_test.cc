// What a rank shows, the others read; nonsense is noticed.
#include "worker/peers/token_board.h"

#include <cstring>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/status_matchers.h"

namespace moebius {
namespace {

constexpr TokenBoard::Capacity kCapacity{4, 6};

class TokenBoardTest : public testing::Test {
 protected:
  std::vector<std::byte> memory_ =
      std::vector<std::byte>(TokenBoard::SizeBytes(kCapacity));
  TokenBoard board_{memory_.data(), {memory_.data()}, kCapacity};
};

TEST_F(TokenBoardTest, AnImpossibleCountIsDataLoss) {
  StepResult read;
  for (size_t offset : {0, 4}) {
    board_.Post(StepResult{});
    const uint32_t count = 7;
    std::memcpy(memory_.data() + offset, &count, sizeof(count));
    EXPECT_THAT(board_.Read(0, read), StatusIs(absl::StatusCode::kDataLoss));
  }
}

TEST_F(TokenBoardTest, AnImpossibleRankingIsDataLoss) {
  StepResult shown;
  shown.sampled = {{1, 2, 3, -0.5f, {}}};
  board_.Post(shown);
  const uint32_t num_top = kMaxLogprobs + 1;
  std::memcpy(memory_.data() + 64 + 16, &num_top, sizeof(num_top));
  StepResult read;
  EXPECT_THAT(board_.Read(0, read), StatusIs(absl::StatusCode::kDataLoss));
}

TEST_F(TokenBoardTest, WhatIsShownIsReadBehindWhatIsThere) {
  StepResult shown;
  shown.sampled = {{1, 20, 300, -0.5f, {{300, -0.5f}, {7, -1.25f}}},
                   {2, 21, 301, 0.0f, {}}};
  std::vector<TokenLogprob> full;
  for (int i = 0; i < kMaxLogprobs; ++i) full.push_back({i, -1.0f * i});
  shown.prompt_logprobs = {{3, 1, 9, -2.0f, full, 5},
                           {3, 2, 8, -3.0f, {}, 70000}};
  board_.Post(shown);
  StepResult read;
  read.sampled = {{0, 1, 2, 0.0f, {}}};
  ASSERT_THAT(board_.Read(0, read), IsOk());
  ASSERT_EQ(read.sampled.size(), 3u);
  EXPECT_EQ(read.sampled[1], shown.sampled[0]);
  EXPECT_EQ(read.sampled[2], shown.sampled[1]);
  EXPECT_EQ(read.prompt_logprobs, shown.prompt_logprobs);
}

TEST_F(TokenBoardTest, RowsThatAreNotFiniteAreAddedUp) {
  StepResult shown;
  shown.nonfinite_rows = 2;
  shown.nonfinite_slot = 3;
  board_.Post(shown);
  StepResult read;
  read.nonfinite_rows = 1;
  ASSERT_THAT(board_.Read(0, read), IsOk());
  EXPECT_EQ(read.nonfinite_rows, 3u);
  EXPECT_EQ(read.nonfinite_slot, 3u);
}

TEST_F(TokenBoardTest, ANewPostReplacesTheOld) {
  StepResult shown;
  shown.sampled.assign(4, {1, 2, 3, 0.0f, {}});
  board_.Post(shown);
  board_.Post(StepResult{});
  StepResult read;
  ASSERT_THAT(board_.Read(0, read), IsOk());
  EXPECT_TRUE(read.sampled.empty());
}

}  // namespace
}  // namespace moebius
