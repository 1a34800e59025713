// From a body to what the engine is asked for.
#include "coordinator/api/generation_request.h"

#include <set>

#include "coordinator/api/generation_defaults.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/status_matchers.h"
#include "tests/unit/coordinator/api/fake_codec.h"

namespace moebius {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

ApiLimits Limits() {
  ApiLimits limits;
  limits.model = "verse";
  limits.max_model_len = 100;
  limits.vocab_size = kFakeVocab;
  limits.defaults.eos_ids = {kFakeEos};
  return limits;
}

Parsed<PreparedRequest> Complete(const std::string& body,
                                 const ApiLimits& limits = Limits()) {
  return PrepareCompletion(body, limits, FakeCodec(), 1000);
}
Parsed<PreparedRequest> Chat(const std::string& body) {
  return PrepareChat(body, Limits(), FakeCodec(), 1000);
}

TEST(GenerationRequest, APromptThatFillsTheContextIsRefusedWithBothNumbers) {
  const auto prepared =
      Complete(R"({"prompt":")" + std::string(100, 'a') + "\"}");
  ASSERT_FALSE(prepared.ok());
  EXPECT_EQ(prepared.error().http_status, 400);
  EXPECT_EQ(prepared.error().param, "prompt");
  EXPECT_EQ(prepared.error().code, "context_length_exceeded");
  EXPECT_THAT(prepared.error().message,
              HasSubstr("context holds 100 tokens, but the prompt has 100"));
  const auto chat = Chat(R"({"messages":[{"role":"user","content":")" +
                         std::string(100, 'a') + "\"}]}");
  ASSERT_FALSE(chat.ok());
  EXPECT_EQ(chat.error().param, "messages");
}

TEST(GenerationRequest, MoreTokensThanTheContextHasLeftAreRefused) {
  const auto prepared = Complete(R"({"prompt":"abcd","max_tokens":97})");
  ASSERT_FALSE(prepared.ok());
  EXPECT_EQ(prepared.error().param, "max_tokens");
  EXPECT_THAT(prepared.error().message, HasSubstr("at most 96, got 97"));
  const auto chat = Chat(
      R"({"messages":[{"role":"user","content":"x"}],
          "max_completion_tokens":1000})");
  ASSERT_FALSE(chat.ok());
  EXPECT_EQ(chat.error().param, "max_completion_tokens");
  EXPECT_TRUE(Complete(R"({"prompt":"abcd","max_tokens":96})").ok());
}

TEST(GenerationRequest, APromptWithoutTokensIsRefused) {
  const auto prepared = Complete(R"({"prompt":["a",""]})");
  ASSERT_FALSE(prepared.ok());
  EXPECT_EQ(prepared.error().param, "prompt");
  EXPECT_THAT(prepared.error().message, HasSubstr("no tokens"));
}

TEST(GenerationRequest, WhatTokenizerOrTemplateRefuseIsA400) {
  const auto text = Complete(R"({"prompt":"unencodable"})");
  ASSERT_FALSE(text.ok());
  EXPECT_EQ(text.error().http_status, 400);
  EXPECT_EQ(text.error().param, "prompt");
  const auto chat = Chat(R"({"messages":[{"role":"user","content":"raise"}]})");
  ASSERT_FALSE(chat.ok());
  EXPECT_EQ(chat.error().http_status, 400);
  EXPECT_EQ(chat.error().param, "messages");
  EXPECT_THAT(chat.error().message, HasSubstr("roles must alternate"));
}

// A tokenizer with one more token than the model has rows.
TEST(GenerationRequest, ATokenThatTheModelDoesNotHaveIsNamed) {
  const std::string expected =
      "has the token 307 (\"<tool_call>\"), which the model does not have: its "
      "ids are 0 to 299";
  for (const char* prompt : {R"("a \u0007")", R"(["a","b\u0007c"])"}) {
    const auto prepared = Complete(std::string(R"({"prompt":)") + prompt + "}");
    ASSERT_FALSE(prepared.ok());
    EXPECT_EQ(prepared.error().http_status, 400);
    EXPECT_EQ(prepared.error().param, "prompt");
    EXPECT_EQ(prepared.error().message, "`prompt` " + expected);
  }
  const auto chat =
      Chat(R"({"messages":[{"role":"user","content":"\u0007"}]})");
  ASSERT_FALSE(chat.ok());
  EXPECT_EQ(chat.error().http_status, 400);
  EXPECT_EQ(chat.error().param, "messages");
  EXPECT_EQ(chat.error().message, "`messages` " + expected);
  const auto stop = Complete(R"({"prompt":"a","stop":["b","\u0007"]})");
  ASSERT_FALSE(stop.ok());
  EXPECT_EQ(stop.error().http_status, 400);
  EXPECT_EQ(stop.error().param, "stop");
  EXPECT_EQ(stop.error().message, "`stop` " + expected);
}

TEST(GenerationRequest, MoreGenerationsThanMayEverWaitAreRefusedByTheLimit) {
  ApiLimits limits = Limits();
  limits.max_queue = 32;
  const auto lists =
      Complete(R"({"prompt":["a","b","c","d","e"],"n":8})", limits);
  ASSERT_FALSE(lists.ok());
  EXPECT_EQ(lists.error().http_status, 400);
  EXPECT_EQ(lists.error().param, "n");
  EXPECT_THAT(lists.error().message,
              HasSubstr("at most 32 generations (scheduler.max_queue); 5 "
                        "prompts with `n` 8 are 40"));
  const auto chat =
      PrepareChat(R"({"messages":[{"role":"user","content":"x"}],"n":33})",
                  limits, FakeCodec(), 1000);
  ASSERT_FALSE(chat.ok());
  EXPECT_EQ(chat.error().param, "n");
  limits.max_queue = 4;
  const auto prompts = Complete(R"({"prompt":["a","b","c","d","e"]})", limits);
  ASSERT_FALSE(prompts.ok());
  EXPECT_EQ(prompts.error().param, "prompt");
  EXPECT_TRUE(Complete(R"({"prompt":["a","b"],"n":2})", limits).ok());
  // However long the queue is.
  limits.max_queue = 1'000'000;
  std::string many = R"({"n":128,"prompt":["a")";
  for (int i = 1; i < 33; ++i) many += R"(,"a")";
  const auto most = Complete(many + "]}", limits);
  ASSERT_FALSE(most.ok());
  EXPECT_THAT(most.error().message, HasSubstr("at most 4096 generations"));
}

TEST(GenerationRequest, AGroupOfRolloutsIsOneRequest) {
  const auto prepared = Complete(R"({"prompt":"a","n":128})");
  ASSERT_TRUE(prepared.ok());
  EXPECT_EQ(prepared->generations.size(), 128u);
  EXPECT_EQ(Complete(R"({"prompt":"a","n":129})").error().param, "n");
}

TEST(GenerationRequest, BadWordsAreTokenizedWithAndWithoutASpace) {
  const auto prepared =
      Complete(R"({"prompt":"a","n":2,"bad_words":["Q"," x"]})");
  ASSERT_TRUE(prepared.ok());
  // A space is a token of its own here, so it is one token more: left out.
  for (const auto& g : prepared->generations) {
    EXPECT_THAT(g.sampling.bad_words,
                ElementsAre(ElementsAre('Q'), ElementsAre('x')));
  }
  // "z" behind a space is another token here, and "zz" one where it is two
  // without.
  const auto chat = Chat(
      R"({"messages":[{"role":"user","content":"x"}],"bad_words":["z","ab","zz"]})");
  ASSERT_TRUE(chat.ok());
  EXPECT_THAT(chat->generations[0].sampling.bad_words,
              ElementsAre(ElementsAre('z'), ElementsAre(kFakeSpacedZ),
                          ElementsAre('a', 'b'), ElementsAre('z', 'z'),
                          ElementsAre(kFakeSpacedZz)));
  std::string many = R"({"prompt":"a","bad_words":[")" + std::string(250, 'w');
  for (int i = 0; i < 8; ++i) many += "\",\"" + std::string(250, 'w');
  const struct {
    std::string body;
    const char* reason;
  } kCases[] = {
      {R"({"prompt":"a","bad_words":["\u0007"]})", "has the token 307"},
      {R"({"prompt":"a","bad_words":["  "]})", "blank"},
      {R"({"prompt":"a","bad_words":["unencodable"]})", "cannot be encoded"},
      {many + "\"]}", "at most 2048 tokens"},
  };
  for (const auto& c : kCases) {
    const auto refused = Complete(c.body);
    ASSERT_FALSE(refused.ok()) << c.reason;
    EXPECT_EQ(refused.error().param, "bad_words");
    EXPECT_THAT(refused.error().message, HasSubstr(c.reason));
  }
}

TEST(GenerationRequest, AllowedIdsAreSortedAndDistinct) {
  const auto prepared =
      Complete(R"({"prompt":"a","allowed_token_ids":[9,4,9,0]})");
  ASSERT_TRUE(prepared.ok());
  EXPECT_THAT(prepared->generations[0].sampling.allowed_ids,
              ElementsAre(0, 4, 9));
}

TEST(GenerationRequest, ATruncatedPromptIsItsEnd) {
  const auto prepared = Complete(
      R"({"prompt":["abcdef","x"],"truncate_prompt_tokens":3,"echo":true})");
  ASSERT_TRUE(prepared.ok());
  EXPECT_THAT(prepared->generations[0].prompt, ElementsAre('d', 'e', 'f'));
  EXPECT_EQ(prepared->prompts[0].text, "def");
  EXPECT_EQ(prepared->prompts[0].num_tokens, 3);
  EXPECT_EQ(prepared->prompts[1].text, "x");
  // What is cut away is nobody's business.
  EXPECT_TRUE(
      Complete(R"({"prompt":"\u0007ab","truncate_prompt_tokens":2})").ok());
  // -1: as much as fits with what is to be generated.
  const std::string fill = R"({"prompt":")" + std::string(150, 'a') +
                           R"(","truncate_prompt_tokens":-1)";
  const auto fits = Complete(fill + R"(,"max_tokens":30})");
  ASSERT_TRUE(fits.ok());
  EXPECT_EQ(fits->generations[0].prompt.size(), 70u);
  EXPECT_EQ(Complete(fill + "}")->generations[0].prompt.size(), 99u);
  EXPECT_EQ(Complete(fill + R"(,"max_tokens":0,"echo":true})")
                ->generations[0]
                .prompt.size(),
            100u);
}

TEST(GenerationRequest, PromptLogprobsAndEchoShareWhatIsComputed) {
  const auto prepared = Complete(
      R"({"prompt":"ab","prompt_logprobs":5,"echo":true,"logprobs":2})");
  ASSERT_TRUE(prepared.ok());
  EXPECT_EQ(prepared->prompt_logprobs, 5);
  EXPECT_EQ(prepared->logprobs.num_top, 2);
  EXPECT_EQ(prepared->generations[0].sampling.num_prompt_logprobs, 5);
}

TEST(GenerationRequest, WhatARequestHoldsInAllIsBounded) {
  ApiLimits limits = Limits();
  limits.max_model_len = 200'000;
  const std::string prompt = R"({"prompt":")" + std::string(70'000, 'a') + "\"";
  EXPECT_TRUE(Complete(prompt + R"(,"n":64})", limits).ok());
  const auto choices = Complete(prompt + R"(,"n":128})", limits);
  ASSERT_FALSE(choices.ok());
  EXPECT_EQ(choices.error().http_status, 400);
  EXPECT_EQ(choices.error().param, "n");
  EXPECT_THAT(choices.error().message, HasSubstr("more than 8388608 numbers"));
  EXPECT_EQ(Complete(prompt + R"(,"n":16,"prompt_logprobs":20})", limits)
                .error()
                .param,
            "n");
}

TEST(GenerationRequest, APromptThatFillsTheContextCanBeScored) {
  const std::string score = R"(","max_tokens":0,"echo":true,"logprobs":1})";
  const auto full = Complete(R"({"prompt":")" + std::string(100, 'a') + score);
  ASSERT_TRUE(full.ok()) << full.error().message;
  EXPECT_TRUE(full->score_only);
  EXPECT_EQ(full->generations[0].prompt.size(), 100u);
  EXPECT_EQ(full->generations[0].stop.max_tokens, 1);
  const auto longer =
      Complete(R"({"prompt":")" + std::string(101, 'a') + score);
  ASSERT_FALSE(longer.ok());
  EXPECT_EQ(longer.error().message,
            "the model's context holds 100 tokens, but the prompt has 101");
}

TEST(GenerationRequest, CompletionsGetSixteenTokensAndChatsTheRest) {
  auto completion = Complete(R"({"prompt":"abcd"})");
  ASSERT_TRUE(completion.ok());
  EXPECT_EQ(completion->generations[0].stop.max_tokens, 16);
  EXPECT_THAT(completion->generations[0].prompt,
              ElementsAre('a', 'b', 'c', 'd'));
  auto nearly = Complete(R"({"prompt":")" + std::string(95, 'a') + "\"}");
  ASSERT_TRUE(nearly.ok());
  EXPECT_EQ(nearly->generations[0].stop.max_tokens, 5);
  auto chat = Chat(R"({"messages":[{"role":"user","content":"x"}]})");
  ASSERT_TRUE(chat.ok());
  const int prompt = std::string("user:x;assistant:").size();
  EXPECT_EQ(chat->generations[0].prompt.size(), prompt);
  EXPECT_EQ(chat->generations[0].stop.max_tokens, 100 - prompt);
}

TEST(GenerationRequest, TheModelsOwnLengthIsTheDefault) {
  ApiLimits limits = Limits();
  limits.defaults.max_new_tokens = 40;
  auto prepared = Complete(R"({"prompt":"abcd"})", limits);
  ASSERT_TRUE(prepared.ok());
  EXPECT_EQ(prepared->generations[0].stop.max_tokens, 40);
}

TEST(GenerationRequest, ChoicesDifferInTheirSeeds) {
  auto prepared = Complete(R"({"prompt":["a","b"],"n":3,"seed":-1})");
  ASSERT_TRUE(prepared.ok());
  ASSERT_EQ(prepared->generations.size(), 6u);
  std::vector<uint64_t> seeds;
  for (const auto& g : prepared->generations) seeds.push_back(g.sampling.seed);
  EXPECT_THAT(seeds, ElementsAre(~uint64_t{0}, 0, 1, ~uint64_t{0}, 0, 1));
  EXPECT_THAT(prepared->generations[2].prompt, ElementsAre('a'));
  EXPECT_THAT(prepared->generations[3].prompt, ElementsAre('b'));
}

TEST(GenerationRequest, WithoutASeedNoTwoGenerationsShareOne) {
  const struct {
    const char* body;
    size_t count;
  } kCases[] = {
      {R"({"prompt":"a","n":3})", 3},
      {R"({"prompt":["a","a","a","a"]})", 4},
      {R"({"prompt":["a","a","b"],"n":4})", 12},
  };
  for (const auto& c : kCases) {
    const auto drawn = Complete(c.body);
    ASSERT_TRUE(drawn.ok());
    std::set<uint64_t> seeds;
    for (const auto& g : drawn->generations) seeds.insert(g.sampling.seed);
    EXPECT_EQ(seeds.size(), c.count) << c.body;
  }
  const auto chat =
      Chat(R"({"messages":[{"role":"user","content":"x"}],"n":3})");
  ASSERT_TRUE(chat.ok());
  EXPECT_NE(chat->generations[0].sampling.seed,
            chat->generations[2].sampling.seed);
}

TEST(GenerationRequest, NothingMayEndItBeforeMinTokens) {
  auto prepared =
      Complete(R"({"prompt":"a","min_tokens":3,"stop_token_ids":[9,4,9]})");
  ASSERT_TRUE(prepared.ok());
  EXPECT_EQ(prepared->generations[0].sampling.min_tokens, 3);
  EXPECT_THAT(prepared->generations[0].sampling.suppressed_ids,
              ElementsAre(4, 9, kFakeEos));
  auto ignoring =
      Complete(R"({"prompt":"a","min_tokens":3,"ignore_eos":true})");
  ASSERT_TRUE(ignoring.ok());
  EXPECT_TRUE(ignoring->generations[0].sampling.suppressed_ids.empty());
  EXPECT_EQ(Complete(R"({"prompt":"a","min_tokens":17})").error().param,
            "min_tokens");
}

TEST(GenerationRequest, ScoringAsksTheEngineForOneToken) {
  auto prepared =
      Complete(R"({"prompt":"ab","max_tokens":0,"echo":true,"logprobs":1})");
  ASSERT_TRUE(prepared.ok());
  EXPECT_TRUE(prepared->score_only);
  EXPECT_EQ(prepared->generations[0].stop.max_tokens, 1);
  EXPECT_EQ(prepared->generations[0].sampling.num_prompt_logprobs, 1);
  EXPECT_EQ(prepared->prompts[0].text, "ab");
  EXPECT_THAT(prepared->prompts[0].ids, ElementsAre('a', 'b'));
}

TEST(GenerationRequest, EchoedTokenIdsBecomeText) {
  auto prepared = Complete(R"({"prompt":[97,257,195],"echo":true})");
  ASSERT_TRUE(prepared.ok());
  EXPECT_EQ(prepared->prompts[0].text, "aé\ufffd");
}

TEST(GenerationRequest, EndsReadAsInVllm) {
  StopCriteria stop;
  stop.stop = {"END", "7"};
  stop.stop_token_ids = {42};
  stop.eos_ids = {kFakeEos};
  const auto text = ToFinishInfo(FinishReason::kStop, "END", stop);
  EXPECT_EQ(text.stop_string, "END");
  EXPECT_EQ(text.stop_token, std::nullopt);
  EXPECT_EQ(ToFinishInfo(FinishReason::kStop, "7", stop).stop_string, "7");
  EXPECT_EQ(ToFinishInfo(FinishReason::kStop, "42", stop).stop_token, 42);
  const auto eos = ToFinishInfo(FinishReason::kStop, "256", stop);
  EXPECT_EQ(eos.stop_token, std::nullopt);
  EXPECT_EQ(eos.stop_string, "");
  EXPECT_EQ(ToFinishInfo(FinishReason::kLength, "", stop).reason,
            FinishReason::kLength);
}

TEST(GenerationDefaults, WhatIsNoObjectIsRefused) {
  for (const auto& [json, reason] :
       {std::pair("[]", "f.json: must be a JSON object"),
        std::pair("{", "f.json: not valid JSON"),
        std::pair("version https://git-lfs", "f.json: not valid JSON")}) {
    EXPECT_THAT(
        ParseGenerationConfig(json, "f.json"),
        StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr(reason)));
  }
}

TEST(GenerationDefaults, AWrongValueIsPassedOverWithAWarning) {
  const struct {
    const char* json;
    const char* warning;
  } kCases[] = {
      {R"("temperature":"x")", "f.json: `temperature` must be a number"},
      {R"("temperature":-1)", "`temperature`"},
      {R"("temperature":NaN)", "read as Python does"},
      {R"("top_p":0.0)", "`top_p` must be a number above 0"},
      {R"("min_p":2)", "`min_p` must be a number from 0 to 1"},
      {R"("repetition_penalty":0)", "`repetition_penalty`"},
      {R"("top_k":1.5)", "`top_k` must be an integer"},
      {R"("top_k":99999999999)", "`top_k`"},
      {R"("top_k":99999999999999999999999)", "`top_k`"},
      {R"("max_new_tokens":0)", "`max_new_tokens`"},
      {R"("eos_token_id":"a")", "`eos_token_id` must be a token id"},
      {R"("eos_token_id":-1)", "`eos_token_id` must be a token id"},
  };
  for (const auto& c : kCases) {
    const auto parsed = ParseGenerationConfig(
        std::string("{") + c.json + R"(,"max_length":20})", "f.json");
    ASSERT_THAT(parsed, IsOk()) << c.json;
    ASSERT_GE(parsed->warnings.size(), 1u) << c.json;
    EXPECT_THAT(parsed->warnings[0], HasSubstr(c.warning));
    EXPECT_EQ(parsed->temperature, std::nullopt);
    EXPECT_EQ(parsed->top_p, std::nullopt);
    EXPECT_EQ(parsed->min_p, std::nullopt);
    EXPECT_EQ(parsed->repetition_penalty, std::nullopt);
    EXPECT_EQ(parsed->top_k, std::nullopt);
    EXPECT_EQ(parsed->max_new_tokens, std::nullopt);
    EXPECT_THAT(parsed->eos_ids, testing::IsEmpty());
  }
}

TEST(GenerationDefaults, OfAKeyGivenTwiceTheLastCountsWithAWarning) {
  const auto parsed = ParseGenerationConfig(
      R"({"top_k":5,"eos_token_id":[1,-1,2],"top_k":7})", "f.json");
  ASSERT_THAT(parsed, IsOk());
  EXPECT_EQ(parsed->top_k, 7);
  EXPECT_THAT(parsed->eos_ids, ElementsAre(1, 2));
  EXPECT_THAT(parsed->warnings,
              ElementsAre(HasSubstr("the key \"top_k\" is given twice"),
                          HasSubstr("`eos_token_id`")));
}

TEST(GenerationDefaults, TheTokenizersEndIsAddedOnce) {
  GenerationDefaults defaults;
  AddEnd(std::nullopt, &defaults);
  EXPECT_THAT(defaults.eos_ids, testing::IsEmpty());
  AddEnd(7, &defaults);
  AddEnd(7, &defaults);
  EXPECT_THAT(defaults.eos_ids, ElementsAre(7));
  defaults.eos_ids = {1, 2};
  AddEnd(2, &defaults);
  AddEnd(3, &defaults);
  EXPECT_THAT(defaults.eos_ids, ElementsAre(1, 2, 3));
}

TEST(GenerationDefaults, OneEndTokenOrSeveral) {
  auto one = ParseGenerationConfig(R"({"eos_token_id":5})", "f");
  ASSERT_THAT(one, IsOk());
  EXPECT_THAT(one->eos_ids, ElementsAre(5));
  auto full = ParseGenerationConfig(
      R"({"eos_token_id":[5,6],"pad_token_id":6,"do_sample":true,
          "temperature":0.7,"top_k":-1,"top_p":0.8})",
      "f");
  ASSERT_THAT(full, IsOk());
  EXPECT_THAT(full->eos_ids, ElementsAre(5, 6));
  EXPECT_THAT(full->warnings, testing::IsEmpty());
  EXPECT_EQ(full->temperature, 0.7f);
  EXPECT_EQ(full->top_k, 0);
  EXPECT_EQ(full->top_p, 0.8f);
  EXPECT_EQ(full->min_p, std::nullopt);
}

TEST(GenerationDefaults, TheCheckpointsFilesAreRead) {
  const char* source = std::getenv("MOEBIUS_SOURCE_DIR");
  ASSERT_NE(source, nullptr) << "run by ctest";
  auto defaults =
      LoadGenerationDefaults(std::string(source) + "/models/verse-moe");
  ASSERT_THAT(defaults, IsOk());
  EXPECT_THAT(defaults->eos_ids, ElementsAre(4095, 4093));
  EXPECT_EQ(defaults->top_k, 20);
  EXPECT_THAT(defaults->warnings, testing::IsEmpty());
  EXPECT_THAT(LoadGenerationDefaults("/no/such/folder"),
              StatusIs(absl::StatusCode::kNotFound));
}

}  // namespace
}  // namespace moebius
