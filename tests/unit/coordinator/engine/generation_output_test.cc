// Text of a generation: what is shown, held back, cut.
#include "coordinator/engine/generation_output.h"

#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/status_matchers.h"
#include "tests/unit/coordinator/engine/test_tokenizer.h"

namespace moebius {
namespace {

constexpr int32_t kEndOfText = 4095;

std::vector<int32_t> Ids(const std::string& text) {
  auto ids = TestTokenizer().Encode(text);
  EXPECT_THAT(ids, IsOk());
  return *ids;
}

struct Shown {
  std::vector<std::string> deltas;
  std::string text;
  std::vector<int32_t> tokens;
  std::optional<FinishReason> finish;
  std::string stop_reason;
};
// Feeds tokens so many at a time; the engine mostly has one.
Shown Feed(StopCriteria stop, const std::vector<int32_t>& ids,
           size_t at_once = 1) {
  GenerationOutput generation(&TestTokenizer(), std::move(stop));
  std::vector<SampledToken> sampled;
  for (int32_t id : ids) sampled.push_back({0, 0, id, 0.0f, {}});
  Shown run;
  for (size_t i = 0; i < sampled.size(); i += at_once) {
    Output output;
    generation.Add(absl::MakeConstSpan(sampled).subspan(i, at_once), output);
    run.deltas.push_back(output.text);
    run.text += output.text;
    for (const auto& t : output.tokens) run.tokens.push_back(t.token);
    run.finish = output.finish;
    run.stop_reason = output.stop_reason;
    if (output.finish.has_value()) break;
  }
  return run;
}

StopCriteria Limit(int max_tokens) {
  StopCriteria stop;
  stop.max_tokens = max_tokens;
  stop.eos_ids = {kEndOfText};
  return stop;
}

TEST(GenerationOutput, EndsWithLengthAtMaxTokens) {
  const auto ids = Ids("In the beginning God created the heaven");
  const Shown run = Feed(Limit(3), ids);
  EXPECT_EQ(run.finish, FinishReason::kLength);
  EXPECT_EQ(run.tokens.size(), 3u);
  EXPECT_EQ(run.text,
            TestTokenizer().Decode(absl::MakeConstSpan(ids).first(3), true));
}

TEST(GenerationOutput, EndOfTextStopsAndIsNotShown) {
  auto ids = Ids("the LORD");
  ids.push_back(kEndOfText);
  const Shown run = Feed(Limit(100), ids);
  EXPECT_EQ(run.finish, FinishReason::kStop);
  EXPECT_EQ(run.stop_reason, "");
  EXPECT_EQ(run.text, "the LORD");
  EXPECT_EQ(run.tokens, ids);
}

TEST(GenerationOutput, SpecialTokensAreShownOnlyToWhoWantsThem) {
  std::vector<int32_t> ids = Ids("In the");
  ids.push_back(kEndOfText);
  const auto more = Ids(" heaven");
  ids.insert(ids.end(), more.begin(), more.end());
  StopCriteria stop = Limit(static_cast<int>(ids.size()));
  stop.ignore_eos = true;
  EXPECT_EQ(Feed(stop, ids).text, "In the heaven");
  stop.skip_special_tokens = false;
  EXPECT_EQ(Feed(stop, ids).text, TestTokenizer().Decode(ids, false));
  EXPECT_THAT(Feed(stop, ids).text, testing::HasSubstr("<|"));
  // The one that ends it is shown to nobody, unless asked for.
  stop.ignore_eos = false;
  EXPECT_EQ(Feed(stop, ids).text, "In the");
  stop.include_stop_str_in_output = true;
  const std::string with_end = Feed(stop, ids).text;
  EXPECT_EQ(with_end,
            "In the" + std::string(TestTokenizer().TokenBytes(kEndOfText)));
  stop.skip_special_tokens = true;
  EXPECT_EQ(Feed(stop, ids).text, "In the");
}

TEST(GenerationOutput, IgnoreEosGoesOn) {
  StopCriteria stop = Limit(100);
  stop.ignore_eos = true;
  const Shown run = Feed(stop, {kEndOfText, kEndOfText});
  EXPECT_FALSE(run.finish.has_value());
}

TEST(GenerationOutput, StopStringCutsTheTextBeforeIt) {
  StopCriteria stop = Limit(100);
  stop.stop = {"unto Moses"};
  const Shown run = Feed(stop, Ids("And the LORD said unto Moses, Go"));
  EXPECT_EQ(run.finish, FinishReason::kStop);
  EXPECT_EQ(run.stop_reason, "unto Moses");
  EXPECT_EQ(run.text, "And the LORD said ");
}

TEST(GenerationOutput, StopStringIsKeptWhenAskedFor) {
  StopCriteria stop = Limit(100);
  stop.stop = {"unto Moses"};
  stop.include_stop_str_in_output = true;
  const Shown run = Feed(stop, Ids("And the LORD said unto Moses, Go"));
  EXPECT_EQ(run.text, "And the LORD said unto Moses");
}

TEST(GenerationOutput, NothingOfAStopStringIsEverShown) {
  StopCriteria stop = Limit(100);
  stop.stop = {"heaven and the earth"};
  const Shown run =
      Feed(stop, Ids("God created the heaven and the earth. And"));
  EXPECT_EQ(run.text, "God created the ");
  for (const std::string& delta : run.deltas) {
    EXPECT_THAT(delta, testing::Not(testing::HasSubstr("heaven")));
  }
}

TEST(GenerationOutput, HeldTextComesOutWhenItIsNoStopString) {
  StopCriteria stop = Limit(100);
  stop.stop = {"heaven and the sea"};
  const auto ids = Ids("God created the heaven and the earth.");
  stop.max_tokens = static_cast<int>(ids.size());
  const Shown run = Feed(stop, ids);
  EXPECT_EQ(run.text, "God created the heaven and the earth.");
  EXPECT_EQ(run.finish, FinishReason::kLength);
}

TEST(GenerationOutput, TheEarliestOfSeveralStopStringsWins) {
  StopCriteria stop = Limit(100);
  stop.stop = {"earth", "and", "the"};
  const Shown run = Feed(stop, Ids("heaven and the earth"));
  EXPECT_EQ(run.stop_reason, "and");
  EXPECT_EQ(run.text, "heaven ");
}

TEST(GenerationOutput, StopTokenEndsAndIsNotShownUnlessAskedFor) {
  const auto ids = Ids(" the LORD said");
  StopCriteria stop = Limit(100);
  stop.stop_token_ids = {ids[1]};
  Shown run = Feed(stop, ids);
  EXPECT_EQ(run.finish, FinishReason::kStop);
  EXPECT_EQ(run.stop_reason, std::to_string(ids[1]));
  EXPECT_EQ(run.text, TestTokenizer().Decode({ids[0]}, true));
  EXPECT_EQ(run.tokens.size(), 2u);
  stop.include_stop_str_in_output = true;
  run = Feed(stop, ids);
  EXPECT_EQ(run.text, TestTokenizer().Decode({ids[0], ids[1]}, true));
}

TEST(GenerationOutput, NothingStopsBeforeMinTokens) {
  StopCriteria stop = Limit(100);
  stop.min_tokens = 4;
  stop.stop_token_ids = {7};
  const Shown run = Feed(stop, {7, kEndOfText, 7, 7, 7});
  EXPECT_EQ(run.finish, FinishReason::kStop);
  EXPECT_EQ(run.tokens.size(), 4u);
}

TEST(GenerationOutput, HowManyTokensComeAtOnceChangesNothing) {
  const auto ids = Ids("And the LORD said unto the LORD, and the LORD spake");
  // The word occurs before min_tokens, across it, and after it.
  for (const char* word : {" LORD", "LORD said", "the", "ke", "none"}) {
    for (int min_tokens = 0; min_tokens < static_cast<int>(ids.size());
         ++min_tokens) {
      StopCriteria stop = Limit(static_cast<int>(ids.size()));
      stop.stop = {word};
      stop.min_tokens = min_tokens;
      const Shown one = Feed(stop, ids);
      for (size_t at_once = 2; at_once <= ids.size(); ++at_once) {
        const Shown many = Feed(stop, ids, at_once);
        EXPECT_EQ(many.text, one.text) << word << " " << min_tokens;
        EXPECT_EQ(many.tokens, one.tokens);
        EXPECT_EQ(many.finish, one.finish);
        EXPECT_EQ(many.stop_reason, one.stop_reason);
      }
    }
  }
}

TEST(GenerationOutput, BrokenCharactersAreHeldUntilWhole) {
  const auto ids = Ids("\xF0\x9F\x98\x80\xE4\xB8\xAD");
  ASSERT_GT(ids.size(), 2u);  // several tokens a character
  const Shown run = Feed(Limit(static_cast<int>(ids.size())), ids);
  EXPECT_EQ(run.text, "\xF0\x9F\x98\x80\xE4\xB8\xAD");
  EXPECT_EQ(run.deltas[0], "");
}

TEST(GenerationOutput, ACharacterCutByTheLimitBecomesOneReplacement) {
  const auto ids = Ids("\xF0\x9F\x98\x80");
  const Shown run = Feed(Limit(1), ids);
  EXPECT_EQ(run.text, "\xEF\xBF\xBD");
}

}  // namespace
}  // namespace moebius
