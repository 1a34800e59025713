// The text stage: what is shown when, and that it does not depend on when.
#include "coordinator/engine/text_table.h"

#include <future>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "coordinator/engine/text_thread.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/unit/coordinator/engine/test_tokenizer.h"

namespace moebius {
namespace {

constexpr RequestId kRequest{7};

std::vector<int32_t> Ids(const std::string& text) {
  auto ids = TestTokenizer().Encode(text);
  EXPECT_THAT(ids, IsOk());
  return *ids;
}

StopCriteria StopAt(std::vector<std::string> words) {
  StopCriteria stop;
  stop.max_tokens = 100;
  stop.stop = std::move(words);
  return stop;
}

GenerationBegun Begin(const StopCriteria& stop) {
  return {kRequest, std::make_unique<GenerationOutput>(&TestTokenizer(), stop),
          true};
}

TokenDrawn Draw(int32_t token, bool last = false) {
  TokenDrawn drawn;
  drawn.request = kRequest;
  drawn.token.token = token;
  drawn.last = last;
  return drawn;
}

GenerationEnded Written() {
  GenerationEnded ended;
  ended.request = kRequest;
  return ended;
}

AttachedAgain::Generation Again(const StopCriteria& stop,
                                const std::vector<int32_t>& tokens) {
  AttachedAgain::Generation again;
  again.request = kRequest;
  again.stop = stop;
  for (int32_t token : tokens) again.tokens.push_back({0, 0, token, 0, {}});
  return again;
}

// What one client hears.
struct Heard {
  std::string text;
  std::vector<int32_t> tokens;
  std::optional<FinishReason> finish;
  std::string stop_reason;

  void Hear(const std::vector<Output>& outputs) {
    for (const Output& output : outputs) {
      EXPECT_FALSE(finish.has_value()) << "output after the end";
      text += output.text;
      for (const auto& token : output.tokens) tokens.push_back(token.token);
      finish = output.finish;
      stop_reason = output.stop_reason;
    }
  }
};

class TextTableTest : public testing::Test {
 protected:
  template <typename... Items>
  void Take(Items... items) {
    TextBatch batch;
    (batch.emplace_back(std::move(items)), ...);
    table_.Take(batch, ends_);
    EXPECT_TRUE(batch.empty());
  }

  const std::vector<int32_t> ids_ =
      Ids("In the beginning God created the heaven and the earth.");
  Heard heard_;
  TextTable table_{&TestTokenizer(), [this](std::vector<Output> outputs) {
                     heard_.Hear(outputs);
                   }};
  std::vector<TextEnd> ends_;
};

TEST_F(TextTableTest, WhatIsDrawnBehindAStopStringCountsForNothing) {
  // The longest delay that there can be, and none.
  for (const bool late : {true, false}) {
    heard_ = {};
    ends_.clear();
    Take(Begin(StopAt({" God"})));
    for (const int32_t id : ids_) {
      if (late || ends_.empty()) Take(Draw(id));
    }
    ASSERT_EQ(ends_.size(), 1u);
    Take(Written());
    EXPECT_EQ(heard_.text, "In the beginning");
    EXPECT_EQ(heard_.finish, FinishReason::kStop);
    EXPECT_EQ(heard_.stop_reason, " God");
    const size_t count = Ids("In the beginning God").size();
    EXPECT_EQ(heard_.tokens,
              std::vector<int32_t>(ids_.begin(), ids_.begin() + count));
  }
}

TEST_F(TextTableTest, AnEndIsNotShownBeforeItIsWritten) {
  Take(Begin(StopAt({" God"})));
  for (const int32_t id : ids_) Take(Draw(id));
  ASSERT_EQ(ends_.size(), 1u);
  EXPECT_EQ(ends_[0].request, kRequest);
  EXPECT_EQ(ends_[0].finish, FinishReason::kStop);
  EXPECT_EQ(ends_[0].stop_reason, " God");
  EXPECT_FALSE(heard_.finish.has_value());
  const size_t shown = heard_.tokens.size();
  Take(Written());
  EXPECT_EQ(heard_.tokens.size(), shown + 1);
  EXPECT_TRUE(heard_.finish.has_value());
}

TEST_F(TextTableTest, ATokenMayEndWhatHasStopStringsAndIsWrittenFirstToo) {
  StopCriteria stop = StopAt({" never"});
  stop.max_tokens = 3;
  Take(Begin(stop), Draw(ids_[0]), Draw(ids_[1]), Draw(ids_[2]));
  ASSERT_EQ(ends_.size(), 1u);
  EXPECT_EQ(ends_[0].finish, FinishReason::kLength);
  EXPECT_FALSE(heard_.finish.has_value());
  Take(Written());
  EXPECT_EQ(heard_.finish, FinishReason::kLength);
}

TEST_F(TextTableTest, WithoutStopStringsTheEngineKnowsTheEndItself) {
  StopCriteria stop = StopAt({});
  stop.max_tokens = 2;
  Take(Begin(stop), Draw(ids_[0]), Draw(ids_[1]));
  EXPECT_EQ(heard_.finish, FinishReason::kLength);
  heard_ = {};
  Take(Begin(StopAt({})), Draw(ids_[0], /*last=*/true));
  EXPECT_EQ(heard_.finish, FinishReason::kLength);
  EXPECT_TRUE(ends_.empty());
}

TEST_F(TextTableTest, WhoWasAbortedHearsNothingMore) {
  Take(Begin(StopAt({" God"})));
  for (const int32_t id : ids_) Take(Draw(id));
  GenerationEnded aborted = Written();
  aborted.silent = true;
  Take(std::move(aborted), Draw(ids_[0]), Written());
  EXPECT_FALSE(heard_.finish.has_value());
}

TEST_F(TextTableTest, WhoAttachesBeforeTheEndIsWrittenHearsItWithAllOthers) {
  const StopCriteria stop = StopAt({" God"});
  Take(Begin(stop));
  for (const int32_t id : ids_) Take(Draw(id));
  Heard newcomer;
  Take(AttachedAgain{{Again(stop, ids_)},
                     [&](auto outputs) { newcomer.Hear(*outputs); }});
  EXPECT_EQ(newcomer.tokens, heard_.tokens);
  EXPECT_EQ(newcomer.text, heard_.text);
  EXPECT_FALSE(newcomer.finish.has_value());
  Take(Written());
  EXPECT_EQ(heard_.tokens.size(), newcomer.tokens.size() + 1);
}

TEST_F(TextTableTest, WhoAttachesLaterHearsTheSameHoweverMuchWasDrawn) {
  AttachedAgain::Generation again = Again(StopAt({" God"}), ids_);
  again.finish = FinishReason::kStop;
  again.stop_reason = " God";
  Heard newcomer;
  Take(AttachedAgain{{std::move(again)},
                     [&](auto outputs) { newcomer.Hear(*outputs); }});
  EXPECT_EQ(newcomer.text, "In the beginning");
  EXPECT_EQ(newcomer.finish, FinishReason::kStop);
  EXPECT_EQ(newcomer.tokens.size(), Ids("In the beginning God").size());
}

TEST_F(TextTableTest, ACallRunsBehindWhatCameBeforeIt) {
  size_t heard = 0;
  Take(Begin(StopAt({})), Draw(ids_[0]),
       TextCall([&] { heard = heard_.tokens.size(); }), Draw(ids_[1]));
  EXPECT_EQ(heard, 1u);
}

TEST(TextThread, WakesTheEngineForEndsAndWhenABacklogIsDone) {
  std::promise<void> go_on, first_wake;
  Heard heard;
  int num_wakes = 0;
  TextThread text(&TestTokenizer(),
                  [&](std::vector<Output> outputs) { heard.Hear(outputs); });
  text.Begin([&] {
    if (num_wakes++ == 0) first_wake.set_value();
  });
  TextBatch batch;
  batch.emplace_back(TextCall([&] { go_on.get_future().wait(); }));
  text.Push(batch);
  batch.emplace_back(Begin(StopAt({" God"})));
  for (int32_t id : Ids("In the beginning God")) batch.emplace_back(Draw(id));
  while (batch.size() <= kMaxTextBacklog) batch.emplace_back(Draw(1));
  text.Push(batch);
  EXPECT_TRUE(batch.empty());
  EXPECT_GT(text.backlog(), kMaxTextBacklog);
  go_on.set_value();
  first_wake.get_future().wait();
  text.Flush();
  EXPECT_EQ(text.backlog(), 0u);
  ASSERT_EQ(text.TakeEnds().size(), 1u);
  EXPECT_TRUE(text.TakeEnds().empty());
  EXPECT_EQ(heard.text, "In the beginning");
}

}  // namespace
}  // namespace moebius
