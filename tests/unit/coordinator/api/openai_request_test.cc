// Every bad value is a 400 that names its field and says what is allowed.
#include "coordinator/api/openai_request.h"

#include <initializer_list>
#include <limits>
#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/unit/coordinator/api/fake_codec.h"

namespace moebius {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::Pair;

ApiLimits Limits() {
  ApiLimits limits;
  limits.model = "verse";
  limits.max_model_len = 100;
  limits.vocab_size = kFakeVocab;
  limits.defaults.eos_ids = {kFakeEos};
  return limits;
}

// A completion or a chat with one more member.
std::string Completion(const std::string& member) {
  return R"({"prompt":"x")" + (member.empty() ? "" : "," + member) + "}";
}
std::string Chat(const std::string& member) {
  return R"({"messages":[{"role":"user","content":"x"}])" +
         (member.empty() ? "" : "," + member) + "}";
}

struct BadCase {
  const char* member;
  const char* param;
  const char* allowed;
};

// Fields that completions and chats share.
const BadCase kSharedBad[] = {
    {R"("model":7)", "model", "a string"},
    {R"("max_tokens":-1)", "max_tokens", "an integer from 0"},
    {R"("max_tokens":1.5)", "max_tokens", "an integer from 0"},
    {R"("max_tokens":"8")", "max_tokens", "an integer from 0"},
    {R"("max_tokens":99999999999999999999)", "max_tokens", "an integer from"},
    {R"("max_tokens":0)", "max_tokens", "at least 1"},
    {R"("max_completion_tokens":0)", "max_completion_tokens", "at least 1"},
    {R"("max_completion_tokens":true)", "max_completion_tokens", "an integer"},
    {R"("max_tokens":4,"max_completion_tokens":5)", "max_tokens", "equal to"},
    {R"("temperature":2.01)", "temperature", "a number from 0 to 2, got 2.01"},
    {R"("temperature":-0.1)", "temperature", "a number from 0 to 2"},
    {R"("temperature":"hot")", "temperature", "got \"hot\""},
    {R"("temperature":[1])", "temperature", "got an array"},
    {R"("temperature":1e300)", "temperature", "a number from 0 to 2"},
    {R"("top_p":0)", "top_p", "a number above 0, up to 1"},
    {R"("top_p":1.1)", "top_p", "a number above 0, up to 1"},
    {R"("top_k":-2)", "top_k", "an integer from -1"},
    {R"("top_k":1e3)", "top_k", "an integer from -1"},
    {R"("min_p":-0.5)", "min_p", "a number from 0 to 1"},
    {R"("min_p":2)", "min_p", "a number from 0 to 1"},
    {R"("repetition_penalty":0)", "repetition_penalty", "above 0"},
    {R"("presence_penalty":2.5)", "presence_penalty", "from -2 to 2"},
    {R"("frequency_penalty":-3)", "frequency_penalty", "from -2 to 2"},
    {R"("n":0)", "n", "an integer from 1 to 128"},
    {R"("n":129)", "n", "an integer from 1 to 128"},
    {R"("n":true)", "n", "an integer from 1 to 128"},
    {R"("best_of":3)", "best_of", "equal to `n`"},
    {R"("seed":1.5)", "seed", "an integer"},
    {R"("seed":9223372036854775808)", "seed", "to 9223372036854775807"},
    {R"("stop":5)", "stop", "a string or a list"},
    {R"("stop":"")", "stop", "1 to 256 bytes"},
    {R"("stop":["a",""])", "stop", "1 to 256 bytes"},
    {R"("stop":["a",1])", "stop", "a list of at most 16"},
    {R"("stop":[1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17])", "stop",
     "at most 16"},
    {R"("stop_token_ids":[300])", "stop_token_ids", "from 0 to 299, got 300"},
    {R"("stop_token_ids":[-1])", "stop_token_ids", "from 0 to 299"},
    {R"("stop_token_ids":1)", "stop_token_ids", "a list"},
    {R"("include_stop_str_in_output":1)", "include_stop_str_in_output",
     "true or false"},
    {R"("ignore_eos":"yes")", "ignore_eos", "true or false"},
    {R"("min_tokens":-1)", "min_tokens", "an integer from 0"},
    {R"("min_tokens":9,"max_tokens":8)", "min_tokens", "at most `max_tokens`"},
    {R"("logit_bias":[1])", "logit_bias", "an object"},
    {R"("logit_bias":{"300":1})", "logit_bias", "0 to 299"},
    {R"("logit_bias":{"-1":1})", "logit_bias", "0 to 299"},
    {R"("logit_bias":{"x":1})", "logit_bias", "got \"x\""},
    {R"("logit_bias":{"1":101})", "logit_bias", "from -100 to 100"},
    {R"("logit_bias":{"1":null})", "logit_bias", "from -100 to 100"},
    {R"("logit_bias":{"7":1,"07":2})", "logit_bias", "each token once"},
    {R"("stream":"true")", "stream", "true or false"},
    {R"("stream":true,"stream_options":[])", "stream_options", "an object"},
    {R"("stream_options":{"include_usage":true})", "stream_options", "stream"},
    {R"("stream":true,"stream_options":{"include_usage":1})",
     "stream_options.include_usage", "true or false"},
    {R"("return_token_ids":0)", "return_token_ids", "true or false"},
    {R"("user":1)", "user", "a string"},
    {R"("skip_special_tokens":0)", "skip_special_tokens", "true or false"},
    {R"("allowed_token_ids":[300])", "allowed_token_ids", "from 0 to 299"},
    {R"("bad_words":"x")", "bad_words", "a list of at most 64"},
    {R"("bad_words":[""])", "bad_words", "1 to 256 bytes"},
    {R"("bad_words":[1])", "bad_words", "strings"},
    {R"("truncate_prompt_tokens":0)", "truncate_prompt_tokens", "-1 or from 1"},
    {R"("truncate_prompt_tokens":-2)", "truncate_prompt_tokens", "from -1 to"},
    {R"("prompt_logprobs":21)", "prompt_logprobs", "from 0 to 20"},
    {R"("prompt_logprobs":-1)", "prompt_logprobs", "from 0 to 20"},
    {R"("prompt_logprobs":1,"stream":true)", "prompt_logprobs", "left out"},
    {R"("response_format":{"type":"json_object"})", "response_format", "text"},
    {R"("response_format":"json")", "response_format", "text"},
};

TEST(OpenAiRequest, BadSharedFieldsAreNamedInCompletionsAndChats) {
  for (const BadCase& c : kSharedBad) {
    const auto completion = ParseCompletion(Completion(c.member), Limits());
    ASSERT_FALSE(completion.ok()) << c.member;
    EXPECT_EQ(completion.error().http_status, 400);
    EXPECT_EQ(completion.error().param, c.param) << c.member;
    EXPECT_EQ(completion.error().type, "invalid_request_error");
    EXPECT_THAT(completion.error().message, HasSubstr(c.allowed));
    const auto chat = ParseChat(Chat(c.member), Limits());
    ASSERT_FALSE(chat.ok()) << c.member;
    EXPECT_EQ(chat.error().param, c.param) << c.member;
    EXPECT_THAT(chat.error().message, HasSubstr(c.allowed));
  }
}

// Values that would change the answer, and those that say nothing.
constexpr struct {
  const char* name;
  std::initializer_list<const char*> refused;
  std::initializer_list<const char*> neutral;
} kUnsupported[] = {
    {"guided_json",
     {R"({"type":"object"})", "\"{}\"", "true"},
     {"null", "false", "{}", "\"\""}},
    {"guided_regex", {"\"a+\""}, {"null", "\"\""}},
    {"guided_choice", {R"(["a","b"])"}, {"null", "[]"}},
    {"guided_grammar", {"\"root ::= x\""}, {"null"}},
    {"guided_json_object", {"true"}, {"false"}},
    {"guided_decoding_backend", {"\"xgrammar\""}, {"null"}},
    {"guided_whitespace_pattern", {"\"x\""}, {"null"}},
    {"structured_outputs", {R"({"choice":["a"]})"}, {"null", "{}"}},
    {"response_format",
     {R"({"type":"json_schema"})", "1"},
     {"null", R"({"type":"text"})"}},
    {"regex", {"\"a\""}, {"null"}},
    {"use_beam_search", {"true", "1"}, {"false", "null"}},
    {"early_stopping", {"true"}, {"false"}},
    {"length_penalty", {"0.5"}, {"1", "1.0", "null"}},
    {"logits_processors", {R"(["x"])"}, {"[]"}},
    {"vllm_xargs", {R"({"a":1})"}, {"{}"}},
    {"thinking_token_budget", {"0", "100"}, {"-1", "null"}},
    {"repetition_detection", {R"({"max_pattern_size":3})"}, {"null"}},
    {"logprob_token_ids", {"[1]"}, {"[]"}},
    {"return_tokens_as_token_ids", {"true"}, {"false"}},
    {"truncation_side", {"\"right\""}, {"\"left\""}},
    {"priority", {"1", "-1"}, {"0"}},
    {"kv_transfer_params", {R"({"do_remote_decode":true})"}, {"null", "{}"}},
    {"prediction", {R"({"type":"content","content":"x"})"}, {"null"}},
};

TEST(OpenAiRequest, FieldsThatAreNotThereAreRefusedUnlessTheySayNothing) {
  for (const auto& c : kUnsupported) {
    for (const char* value : c.refused) {
      const std::string member = "\"" + std::string(c.name) + "\":" + value;
      const auto completion = ParseCompletion(Completion(member), Limits());
      ASSERT_FALSE(completion.ok()) << member;
      EXPECT_EQ(completion.error().http_status, 400);
      EXPECT_EQ(completion.error().param, c.name);
      EXPECT_THAT(completion.error().message,
                  HasSubstr("nothing else is served here"));
      const auto chat = ParseChat(Chat(member), Limits());
      ASSERT_FALSE(chat.ok()) << member;
      EXPECT_EQ(chat.error().param, c.name);
    }
    for (const char* value : c.neutral) {
      const std::string member = "\"" + std::string(c.name) + "\":" + value;
      EXPECT_TRUE(ParseCompletion(Completion(member), Limits()).ok()) << member;
      EXPECT_TRUE(ParseChat(Chat(member), Limits()).ok()) << member;
    }
  }
}

TEST(OpenAiRequest, FieldsOfChatsThatAreNotThereAreRefused) {
  const struct {
    const char* name;
    const char* refused;
    const char* neutral;
  } kCases[] = {
      {"functions", R"([{"name":"f"}])", "[]"},
      {"function_call", R"({"name":"f"})", "\"none\""},
      {"modalities", R"(["text","audio"])", R"(["text"])"},
      {"audio", R"({"voice":"x"})", "null"},
      {"web_search_options", "{}", "null"},
      {"verbosity", "\"low\"", "\"medium\""},
      {"include_reasoning", "false", "true"},
      {"mm_processor_kwargs", R"({"a":1})", "{}"},
      {"echo", "true", "false"},
  };
  for (const auto& c : kCases) {
    const std::string key = "\"" + std::string(c.name) + "\":";
    const auto chat = ParseChat(Chat(key + c.refused), Limits());
    ASSERT_FALSE(chat.ok()) << c.name;
    EXPECT_EQ(chat.error().param, c.name);
    EXPECT_TRUE(ParseChat(Chat(key + c.neutral), Limits()).ok()) << c.name;
  }
}

TEST(OpenAiRequest, WhatTemplatesReadHasFieldsOfItsOwn) {
  const auto chat =
      ParseChat(Chat(R"("reasoning_effort":"low","documents":[{"text":"x"}],
              "chat_template_kwargs":{"a":1,"reasoning_effort":"high"})"),
                Limits());
  ASSERT_TRUE(chat.ok());
  EXPECT_EQ(chat->input.template_kwargs.dump(),
            R"({"a":1,"reasoning_effort":"low","documents":[{"text":"x"}]})");
  const auto none = ParseChat(Chat(R"("reasoning_effort":null,"documents":[],
              "parallel_tool_calls":false)"),
                              Limits());
  ASSERT_TRUE(none.ok());
  EXPECT_EQ(none->input.template_kwargs.dump(), "{}");
  for (const auto& [member, param] :
       {std::pair(R"("reasoning_effort":3)", "reasoning_effort"),
        std::pair(R"("documents":["x"])", "documents"),
        std::pair(R"("documents":{})", "documents")}) {
    const auto refused = ParseChat(Chat(member), Limits());
    ASSERT_FALSE(refused.ok()) << member;
    EXPECT_EQ(refused.error().param, param);
  }
}

TEST(OpenAiRequest, UsageInEachEventIsPartOfUsage) {
  const auto continuous = [](std::string options) {
    const auto chat = ParseChat(
        Chat(R"("stream":true,"stream_options":)" + options), Limits());
    return chat.ok() && chat->generation.continuous_usage;
  };
  EXPECT_TRUE(
      continuous(R"({"include_usage":true,"continuous_usage_stats":true})"));
  EXPECT_FALSE(continuous(R"({"include_usage":true})"));
  EXPECT_FALSE(continuous(R"({"continuous_usage_stats":true})"));
}

TEST(OpenAiRequest, FieldsThatDescribeTheCallerAreTaken) {
  const char* members =
      R"("user":"me","metadata":{"a":"b"},"store":true,"service_tier":"flex",
         "safety_identifier":"x","prompt_cache_key":"k","cache_salt":"s",
         "request_id":"r","session_id":"s","stream_interval":4,
         "add_special_tokens":true,"spaces_between_special_tokens":false,
         "unheard_of":[1])";
  EXPECT_TRUE(ParseCompletion(Completion(members), Limits()).ok());
  EXPECT_TRUE(ParseChat(Chat(members), Limits()).ok());
}

TEST(OpenAiRequest, BadFieldsOfCompletionsAreNamed) {
  const struct {
    const char* body;
    const char* param;
    const char* allowed;
  } kCases[] = {
      {R"({})", "prompt", "given"},
      {R"({"prompt":null})", "prompt", "given"},
      {R"({"prompt":5})", "prompt", "a string, a list of token ids"},
      {R"({"prompt":[]})", "prompt", "a list of 1 to 256"},
      {R"({"prompt":[1,"a"]})", "prompt", "token ids from 0 to 299"},
      {R"({"prompt":[1,2.5]})", "prompt", "token ids from 0 to 299"},
      {R"({"prompt":[300]})", "prompt", "token ids from 0 to 299, got 300"},
      {R"({"prompt":[-1]})", "prompt", "token ids from 0 to 299"},
      {R"({"prompt":["a",[]]})", "prompt", "a string, a list of token ids"},
      {R"({"prompt":["a",{}]})", "prompt", "a string, a list of token ids"},
      {R"({"prompt":[[1,2],[3,"b"]]})", "prompt", "token ids"},
      {R"({"prompt":"x","logprobs":21})", "logprobs", "from 0 to 20"},
      {R"({"prompt":"x","logprobs":-1})", "logprobs", "from 0 to 20"},
      {R"({"prompt":"x","logprobs":true})", "logprobs", "an integer"},
      {R"({"prompt":"x","echo":"no"})", "echo", "true or false"},
      {R"({"prompt":"x","suffix":"end"})", "suffix", "left out"},
  };
  for (const auto& c : kCases) {
    const auto parsed = ParseCompletion(c.body, Limits());
    ASSERT_FALSE(parsed.ok()) << c.body;
    EXPECT_EQ(parsed.error().http_status, 400);
    EXPECT_EQ(parsed.error().param, c.param) << c.body;
    EXPECT_THAT(parsed.error().message, HasSubstr(c.allowed));
  }
}

TEST(OpenAiRequest, BadFieldsOfChatsAreNamed) {
  const struct {
    const char* body;
    const char* param;
    const char* allowed;
  } kCases[] = {
      {R"({})", "messages", "given"},
      {R"({"messages":"hi"})", "messages", "a list of 1 to 4096"},
      {R"({"messages":[]})", "messages", "a list of 1 to 4096"},
      {R"({"messages":["hi"]})", "messages[0]", "an object"},
      {R"({"messages":[{"content":"x"}]})", "messages[0].role", "one of"},
      {R"({"messages":[{"role":"robot","content":"x"}]})", "messages[0].role",
       "got \"robot\""},
      {R"({"messages":[{"role":1,"content":"x"}]})", "messages[0].role",
       "one of"},
      {R"({"messages":[{"role":"user"}]})", "messages[0].content", "a string"},
      {R"({"messages":[{"role":"user","content":null}]})",
       "messages[0].content", "a string"},
      {R"({"messages":[{"role":"user","content":3}]})", "messages[0].content",
       "a string or a list of text parts, got 3"},
      {R"({"messages":[{"role":"user","content":"a"},{"role":"user",
          "content":[{"type":"text","text":"a"},{"type":"image_url"}]}]})",
       "messages[1].content[1]", "no other kind"},
      {R"({"messages":[{"role":"user","content":["a"]}]})",
       "messages[0].content[0]", "\"type\": \"text\""},
      {R"({"messages":[{"role":"user","content":[{"type":"text"}]}]})",
       "messages[0].content[0]", "a string"},
      {R"({"messages":[{"role":"assistant","tool_calls":{}}]})",
       "messages[0].tool_calls", "a list"},
      {R"({"messages":[{"role":"assistant","tool_calls":[7]}]})",
       "messages[0].tool_calls[0]", "an object"},
      {R"({"messages":[{"role":"assistant","tool_calls":[{"function":{}}]}]})",
       "messages[0].tool_calls[0].function", "`name`"},
  };
  for (const auto& c : kCases) {
    const auto parsed = ParseChat(c.body, Limits());
    ASSERT_FALSE(parsed.ok()) << c.body;
    EXPECT_EQ(parsed.error().param, c.param) << c.body;
    EXPECT_THAT(parsed.error().message, HasSubstr(c.allowed)) << c.body;
  }
  const BadCase kMembers[] = {
      {R"("logprobs":1)", "logprobs", "true or false"},
      {R"("logprobs":true,"top_logprobs":21)", "top_logprobs", "from 0 to 20"},
      {R"("top_logprobs":2)", "top_logprobs", "unless `logprobs`"},
      {R"("tools":{})", "tools", "a list"},
      {R"("tools":[1])", "tools", "a list"},
      {R"("tool_choice":"required")", "tool_choice", "\"auto\" or \"none\""},
      {R"("tool_choice":{"type":"function"})", "tool_choice", "\"auto\""},
      {R"("add_generation_prompt":1)", "add_generation_prompt", "true"},
      {R"("continue_final_message":"yes")", "continue_final_message", "true"},
      {R"("continue_final_message":true,"add_generation_prompt":true)",
       "add_generation_prompt", "false or left out"},
      {R"("chat_template":"x")", "chat_template",
       "http.allow_request_templates"},
      {R"("chat_template_kwargs":[])", "chat_template_kwargs", "an object"},
  };
  for (const BadCase& c : kMembers) {
    const auto parsed = ParseChat(Chat(c.member), Limits());
    ASSERT_FALSE(parsed.ok()) << c.member;
    EXPECT_EQ(parsed.error().param, c.param) << c.member;
    EXPECT_THAT(parsed.error().message, HasSubstr(c.allowed)) << c.member;
  }
}

TEST(OpenAiRequest, WhatIsNoObjectIsA400WithoutAField) {
  for (const char* body : {"", "[]", "3", "\"x\"", "{\"prompt\":NaN}",
                           "{\"prompt\":\"a\",\"prompt\":\"b\"}"}) {
    for (const ApiError& error :
         {ParseCompletion(body, Limits()).error(),
          ParseChat(body, Limits()).error(),
          ParseTokenize(body, Limits()).error(),
          ParseDetokenize(body, Limits()).error(),
          ParseLayoutBody(body, {{1}, {2}}, 2).error()}) {
      EXPECT_EQ(error.http_status, 400);
      EXPECT_EQ(error.param, "");
      EXPECT_EQ(error.code, "invalid_json");
    }
  }
}

TEST(OpenAiRequest, AnUnknownModelIsA404) {
  const auto parsed =
      ParseCompletion(R"({"model":"gpt-4","prompt":"x"})", Limits());
  ASSERT_FALSE(parsed.ok());
  EXPECT_EQ(parsed.error().http_status, 404);
  EXPECT_EQ(parsed.error().code, "model_not_found");
  EXPECT_EQ(parsed.error().param, "model");
  EXPECT_THAT(parsed.error().message, HasSubstr("\"gpt-4\""));
}

TEST(OpenAiRequest, DefaultsComeFromTheRequestThenTheModelThenOpenAi) {
  ApiLimits limits = Limits();
  auto plain = ParseCompletion(Completion(""), limits);
  ASSERT_TRUE(plain.ok());
  EXPECT_EQ(plain->generation.sampling, SamplingParams());
  limits.defaults.temperature = 0.7f;
  limits.defaults.top_k = 20;
  limits.defaults.top_p = 0.8f;
  limits.defaults.min_p = 0.1f;
  limits.defaults.repetition_penalty = 1.1f;
  auto parsed =
      ParseCompletion(Completion(R"("temperature":0,"top_k":-1)"), limits);
  ASSERT_TRUE(parsed.ok());
  const SamplingParams& sampling = parsed->generation.sampling;
  EXPECT_EQ(sampling.temperature, 0.0f);
  EXPECT_EQ(sampling.top_k, 0);
  EXPECT_EQ(sampling.top_p, 0.8f);
  EXPECT_EQ(sampling.min_p, 0.1f);
  EXPECT_EQ(sampling.repetition_penalty, 1.1f);
  EXPECT_THAT(parsed->generation.stop.eos_ids, ElementsAre(kFakeEos));
}

TEST(OpenAiRequest, EveryFieldOfACompletionIsRead) {
  const auto parsed = ParseCompletion(R"({
      "model":"verse", "prompt":["a",[1,2]], "max_tokens":5, "temperature":0.5,
      "top_p":0.9, "top_k":7, "min_p":0.25, "n":2, "seed":-3, "stop":["x","yz"],
      "stop_token_ids":[4], "include_stop_str_in_output":true,
      "ignore_eos":true, "min_tokens":2, "logprobs":3, "echo":true,
      "presence_penalty":1, "frequency_penalty":-1, "repetition_penalty":1.5,
      "logit_bias":{"9":-100,"8":2.5}, "stream":true,
      "stream_options":{"include_usage":true}, "return_token_ids":true,
      "user":"u", "a_field_of_the_future":{"x":1}})",
                                      Limits());
  ASSERT_TRUE(parsed.ok()) << parsed.error().message;
  EXPECT_THAT(parsed->prompts,
              ElementsAre(Prompt("a"), Prompt(std::vector<int32_t>{1, 2})));
  const GenerationFields& g = parsed->generation;
  EXPECT_EQ(g.max_tokens, 5);
  EXPECT_EQ(g.n, 2);
  EXPECT_EQ(g.seed, -3);
  EXPECT_EQ(g.sampling.temperature, 0.5f);
  EXPECT_EQ(g.sampling.top_p, 0.9f);
  EXPECT_EQ(g.sampling.top_k, 7);
  EXPECT_EQ(g.sampling.min_p, 0.25f);
  EXPECT_EQ(g.sampling.presence_penalty, 1.0f);
  EXPECT_EQ(g.sampling.frequency_penalty, -1.0f);
  EXPECT_EQ(g.sampling.repetition_penalty, 1.5f);
  EXPECT_EQ(g.sampling.num_logprobs, 3);
  EXPECT_EQ(g.sampling.num_prompt_logprobs, 3);
  EXPECT_THAT(g.sampling.logit_bias,
              ElementsAre(Pair(8, 2.5f), Pair(9, -100.0f)));
  EXPECT_THAT(g.stop.stop, ElementsAre("x", "yz"));
  EXPECT_THAT(g.stop.stop_token_ids, ElementsAre(4));
  EXPECT_TRUE(g.stop.include_stop_str_in_output);
  EXPECT_TRUE(g.stop.ignore_eos);
  EXPECT_EQ(g.stop.min_tokens, 2);
  EXPECT_TRUE(g.stream && g.include_usage && g.return_token_ids);
  EXPECT_TRUE(parsed->echo);
  EXPECT_EQ(parsed->logprobs, 3);
}

TEST(OpenAiRequest, NullIsTheSameAsLeftOut) {
  const auto parsed = ParseCompletion(
      Completion(R"("model":null,"max_tokens":null,"temperature":null,
          "stop":null,"logprobs":null,"seed":null,"logit_bias":null,
          "stream":null,"stream_options":null,"n":null,"user":null)"),
      Limits());
  ASSERT_TRUE(parsed.ok()) << parsed.error().message;
  EXPECT_FALSE(parsed->generation.max_tokens.has_value());
  EXPECT_FALSE(parsed->generation.seed.has_value());
}

TEST(OpenAiRequest, ScoringAPromptNeedsNoToken) {
  const auto parsed = ParseCompletion(
      Completion(R"("max_tokens":0,"echo":true,"logprobs":0)"), Limits());
  ASSERT_TRUE(parsed.ok()) << parsed.error().message;
  EXPECT_EQ(parsed->generation.max_tokens, 0);
  EXPECT_EQ(parsed->generation.sampling.num_prompt_logprobs, 0);
}

TEST(OpenAiRequest, ExtremesThatAreAllowedPass) {
  for (const char* member :
       {R"("seed":9223372036854775807)", R"("seed":-9223372036854775808)",
        R"("temperature":1e-50)", R"("top_p":1e-60)", R"("top_p":1)",
        R"("n":128)", R"("top_k":2147483647)", R"("best_of":1)",
        R"("response_format":{"type":"text"})"}) {
    EXPECT_TRUE(ParseCompletion(Completion(member), Limits()).ok()) << member;
    EXPECT_TRUE(ParseChat(Chat(member), Limits()).ok()) << member;
  }
  const auto tiny = ParseCompletion(Completion(R"("top_p":1e-60)"), Limits());
  EXPECT_GT(tiny->generation.sampling.top_p, 0.0f);
}

TEST(OpenAiRequest, MessagesTakeTheFormThatTemplatesExpect) {
  const auto parsed = ParseChat(R"({"messages":[
      {"role":"developer","content":"be brief"},
      {"role":"user","content":[{"type":"text","text":"a"},
                                {"type":"text","text":"b"}]},
      {"role":"assistant","content":null,"tool_calls":[
          {"id":"1","type":"function",
           "function":{"name":"f","arguments":"{\"z\":1,\"a\":2}"}},
          {"function":{"name":"g","arguments":"not json"}},
          {"function":{"name":"h"}}]},
      {"role":"tool","tool_call_id":"1","content":"42"}],
      "tools":[{"type":"function","function":{"name":"f"}}],
      "tool_choice":"auto","chat_template_kwargs":{"enable_thinking":false}})",
                                Limits());
  ASSERT_TRUE(parsed.ok()) << parsed.error().message;
  EXPECT_EQ(
      parsed->input.messages.dump(),
      R"([{"role":"system","content":"be brief"},{"role":"user","content":[{"type":"text","text":"a"},{"type":"text","text":"b"}]},)"
      R"({"role":"assistant","content":[],"tool_calls":[{"id":"1","type":"function","function":{"name":"f","arguments":{"z":1,"a":2}}},)"
      R"({"function":{"name":"g","arguments":{}}},{"function":{"name":"h","arguments":{}}}]},)"
      R"({"role":"tool","tool_call_id":"1","content":"42"}])");
  EXPECT_EQ(parsed->input.tools.dump(),
            R"([{"type":"function","function":{"name":"f"}}])");
  EXPECT_EQ(parsed->input.template_kwargs.dump(),
            R"({"enable_thinking":false})");
}

TEST(OpenAiRequest, APromptEndsInOneOfThreeWays) {
  const auto input = [](const std::string& members) {
    const auto chat = ParseChat(Chat(members), Limits());
    EXPECT_TRUE(chat.ok()) << members;
    const auto tokenized = ParseTokenize(Chat(members), Limits());
    EXPECT_TRUE(tokenized.ok()) << members;
    const auto& other = std::get<ChatInput>(tokenized->input);
    EXPECT_EQ(other.add_generation_prompt, chat->input.add_generation_prompt);
    EXPECT_EQ(other.continue_final_message, chat->input.continue_final_message);
    return std::pair(chat->input.add_generation_prompt,
                     chat->input.continue_final_message);
  };
  EXPECT_THAT(input(""), Pair(true, false));
  EXPECT_THAT(input(R"("add_generation_prompt":false)"), Pair(false, false));
  EXPECT_THAT(input(R"("continue_final_message":true)"), Pair(false, true));
  EXPECT_THAT(input(R"("continue_final_message":true,
                       "add_generation_prompt":false)"),
              Pair(false, true));
  EXPECT_EQ(ParseTokenize(Chat(R"("continue_final_message":true,
                                  "add_generation_prompt":true)"),
                          Limits())
                .error()
                .param,
            "add_generation_prompt");
}

TEST(OpenAiRequest, ATemplateIsTakenWhereItIsAllowed) {
  ApiLimits limits = Limits();
  limits.allow_request_templates = true;
  EXPECT_EQ(
      ParseChat(Chat(R"("chat_template":"x")"), limits)->input.chat_template,
      "x");
  EXPECT_EQ(ParseChat(Chat(R"("chat_template":7)"), limits).error().param,
            "chat_template");
  for (const auto& l : {limits, Limits()}) {
    EXPECT_EQ(
        ParseChat(Chat(R"("chat_template":null)"), l)->input.chat_template,
        std::nullopt);
  }
}

TEST(OpenAiRequest, ToolsThatMayNotBeCalledAreLeftOut) {
  const auto parsed = ParseChat(
      Chat(R"("tools":[{"type":"function"}],"tool_choice":"none")"), Limits());
  ASSERT_TRUE(parsed.ok());
  EXPECT_TRUE(parsed->input.tools.is_null());
}

TEST(OpenAiRequest, ChatLogprobsAreASwitchAndANumber) {
  const auto none = ParseChat(Chat(R"("logprobs":false)"), Limits());
  ASSERT_TRUE(none.ok());
  EXPECT_EQ(none->generation.sampling.num_logprobs, -1);
  const auto own = ParseChat(Chat(R"("logprobs":true)"), Limits());
  ASSERT_TRUE(own.ok());
  EXPECT_EQ(own->generation.sampling.num_logprobs, 0);
  const auto top =
      ParseChat(Chat(R"("logprobs":true,"top_logprobs":20)"), Limits());
  ASSERT_TRUE(top.ok());
  EXPECT_EQ(top->generation.sampling.num_logprobs, 20);
}

TEST(OpenAiRequest, TokenizeTakesATextOrAConversation) {
  EXPECT_EQ(ParseTokenize("{}", Limits()).error().param, "prompt");
  EXPECT_EQ(ParseTokenize(R"({"prompt":[1]})", Limits()).error().param,
            "prompt");
  EXPECT_EQ(ParseTokenize(R"({"model":"?","prompt":"a"})", Limits())
                .error()
                .http_status,
            404);
  const auto text =
      ParseTokenize(R"({"prompt":"","return_token_strs":true})", Limits());
  ASSERT_TRUE(text.ok());
  EXPECT_TRUE(text->return_token_strs);
  EXPECT_EQ(std::get<std::string>(text->input), "");
  const auto chat = ParseTokenize(
      R"({"messages":[{"role":"user","content":"x"}],
          "add_generation_prompt":false})",
      Limits());
  ASSERT_TRUE(chat.ok());
  EXPECT_FALSE(std::get<ChatInput>(chat->input).add_generation_prompt);
}

TEST(OpenAiRequest, DetokenizeTakesTokenIds) {
  for (const char* body : {"{}", R"({"tokens":"a"})", R"({"tokens":[300]})",
                           R"({"tokens":[1.5]})"}) {
    EXPECT_EQ(ParseDetokenize(body, Limits()).error().param, "tokens") << body;
  }
  const auto parsed = ParseDetokenize(R"({"tokens":[1,299]})", Limits());
  ASSERT_TRUE(parsed.ok());
  EXPECT_THAT(parsed->tokens, ElementsAre(1, 299));
  std::string many = R"({"tokens":[1)";
  for (int i = 1; i < kMaxDetokenized; ++i) many += ",1";
  EXPECT_TRUE(ParseDetokenize(many + "]}", Limits()).ok());
  EXPECT_EQ(ParseDetokenize(many + ",1]}", Limits()).error().param, "tokens");
}

}  // namespace
}  // namespace moebius
