// Bodies and events, byte for byte.
#include "coordinator/api/openai_response.h"

#include "coordinator/http/api_error.h"
#include "gtest/gtest.h"
#include "tests/status_matchers.h"
#include "tests/unit/coordinator/api/fake_codec.h"

namespace moebius {
namespace {

AnswerHead Head(bool chat) {
  return {chat, chat ? "chatcmpl-1" : "cmpl-1", "verse", 1700000000};
}

TEST(OpenAiResponse, ErrorsHaveTheirShape) {
  ApiError error = BadField("top_p", "must be \"small\"");
  EXPECT_EQ(ErrorBody(error),
            R"({"error":{"message":"must be \"small\"",)"
            R"("type":"invalid_request_error","param":"top_p","code":null}})");
  error.param = "";
  error.code = "c";
  EXPECT_EQ(ErrorBody(error),
            R"({"error":{"message":"must be \"small\"",)"
            R"("type":"invalid_request_error","param":null,"code":"c"}})");
}

TEST(OpenAiResponse, ErrorsOfTheEngineHaveTheirStatus) {
  const struct {
    absl::Status status;
    int http_status;
    int retry_after_s;
  } kCases[] = {
      {absl::ResourceExhaustedError("full"), 429, 1},
      {absl::UnavailableError("draining"), 503, 5},
      {absl::InvalidArgumentError("no"), 400, 0},
      {absl::InternalError("oh"), 500, 0},
  };
  for (const auto& c : kCases) {
    const ApiError error = EngineError(c.status);
    EXPECT_EQ(error.http_status, c.http_status);
    EXPECT_EQ(error.retry_after_s, c.retry_after_s);
    EXPECT_EQ(error.message, c.status.message());
  }
}

TEST(OpenAiResponse, AnEventOfACompletion) {
  const ChunkWriter writer(Head(false), false);
  std::string out;
  writer.Append({.index = 2, .text = "a\"\n"}, &out);
  EXPECT_EQ(out,
            "data: {\"id\":\"cmpl-1\",\"object\":\"text_completion\","
            "\"created\":1700000000,\"model\":\"verse\",\"choices\":["
            "{\"index\":2,\"text\":\"a\\\"\\n\",\"logprobs\":null,"
            "\"finish_reason\":null,\"stop_reason\":null}]}\n\n");
}

TEST(OpenAiResponse, TheRoleComesWithTheFirstTokenOfAChat) {
  const ChunkWriter writer(Head(true), true);
  std::string first, second;
  writer.Append({.index = 0, .text = "hi", .first = true}, &first);
  writer.Append({.index = 0,
                 .text = " you",
                 .finish = FinishInfo{FinishReason::kStop, "END", {}}},
                &second);
  EXPECT_EQ(
      first,
      "data: {\"id\":\"chatcmpl-1\",\"object\":\"chat.completion.chunk\","
      "\"created\":1700000000,\"model\":\"verse\",\"choices\":["
      "{\"index\":0,\"delta\":{\"role\":\"assistant\",\"content\":\"hi\"},"
      "\"logprobs\":null,\"finish_reason\":null,\"stop_reason\":null}],"
      "\"usage\":null}\n\n");
  EXPECT_NE(second.find("\"delta\":{\"content\":\" you\"},\"logprobs\":null,"
                        "\"finish_reason\":\"stop\",\"stop_reason\":\"END\"}]"),
            second.npos)
      << second;
}

TEST(OpenAiResponse, TokenIdsComeOnEveryEventAndThePromptsOnTheFirst) {
  const ChunkWriter writer(Head(false), false);
  const std::vector<int32_t> prompt = {7, 8}, ids = {1, 2};
  std::string first, second;
  ChunkEvent event;
  event.with_token_ids = true;
  event.token_ids = ids;
  event.prompt_token_ids = prompt;
  event.first = true;
  writer.Append(event, &first);
  event.first = false;
  writer.Append(event, &second);
  EXPECT_NE(first.find(R"(,"prompt_token_ids":[7,8],"token_ids":[1,2]})"),
            first.npos);
  EXPECT_EQ(second.find("prompt_token_ids"), second.npos);
  EXPECT_NE(second.find(R"(,"token_ids":[1,2]})"), second.npos);
}

TEST(OpenAiResponse, UsageAndTheEndOfAStream) {
  const ChunkWriter writer(Head(false), true);
  std::string out;
  writer.AppendUsage({3, 4}, &out);
  ChunkWriter::AppendDone(&out);
  EXPECT_EQ(out,
            "data: {\"id\":\"cmpl-1\",\"object\":\"text_completion\","
            "\"created\":1700000000,\"model\":\"verse\",\"choices\":[],"
            "\"usage\":{\"prompt_tokens\":3,\"completion_tokens\":4,"
            "\"total_tokens\":7}}\n\ndata: [DONE]\n\n");
}

TEST(OpenAiResponse, AWholeChatAndAWholeCompletion) {
  ChoiceBody choice;
  choice.text = "x";
  choice.finish = {FinishReason::kStop, "", 42};
  EXPECT_EQ(AnswerBody(Head(true), {choice}, {1, 2}),
            R"({"id":"chatcmpl-1","object":"chat.completion","created":)"
            R"(1700000000,"model":"verse","choices":[{"index":0,"message":)"
            R"({"role":"assistant","content":"x","refusal":null},"logprobs":)"
            R"(null,"finish_reason":"stop","stop_reason":42}],"usage":)"
            R"({"prompt_tokens":1,"completion_tokens":2,"total_tokens":3}})");
  const std::vector<int32_t> prompt = {5};
  choice.with_token_ids = true;
  choice.token_ids = {6, 7};
  choice.prompt_token_ids = prompt;
  choice.finish = {FinishReason::kAbort, "", {}};
  ChoiceBody other = choice;
  other.index = 1;
  other.with_token_ids = false;
  EXPECT_EQ(AnswerBody(Head(false), {choice, other}, {1, 2}),
            R"({"id":"cmpl-1","object":"text_completion","created":)"
            R"(1700000000,"model":"verse","choices":[{"index":0,"text":"x",)"
            R"("logprobs":null,"finish_reason":"length","stop_reason":"abort",)"
            R"("prompt_token_ids":[5],"token_ids":[6,7]},{"index":1,)"
            R"("text":"x","logprobs":null,"finish_reason":"length",)"
            R"("stop_reason":"abort"}],"usage":{"prompt_tokens":1,)"
            R"("completion_tokens":2,"total_tokens":3}})");
}

TEST(OpenAiResponse, LogprobsOfCompletionsAreFourLists) {
  const std::vector<TokenLogprob> top = {{'a', -0.25f}, {257, -1.5f}};
  const std::vector<ScoredToken> tokens = {
      {.token = 257},                                 // no score
      {.token = 0xc3, .logprob = -2.0f, .top = top},  // half a character
      {.token = 'a', .logprob = -0.25f, .top = top}};
  int64_t offset = 10;
  std::string out;
  AppendCompletionLogprobs(tokens, FakeCodec(), &offset, &out);
  EXPECT_EQ(out,
            R"({"tokens":["é","bytes:\\xc3","a"],)"
            R"("token_logprobs":[null,-2,-0.25],"top_logprobs":[null,)"
            R"({"a":-0.25,"é":-1.5,"bytes:\\xc3":-2},{"a":-0.25,"é":-1.5}],)"
            R"("text_offset":[10,11,12]})");
  EXPECT_EQ(offset, 13);
}

TEST(OpenAiResponse, TokensThatReadAlikeAreOneKey) {
  const std::vector<TokenLogprob> top = {{258, -1.0f}, {259, -2.0f}};
  const std::vector<ScoredToken> tokens = {
      {.token = 260, .logprob = -3.0f, .top = top}};
  int64_t offset = 0;
  std::string out;
  AppendCompletionLogprobs(tokens, FakeCodec(), &offset, &out);
  EXPECT_NE(out.find(R"("top_logprobs":[{"":-1}])"), out.npos) << out;
}

TEST(OpenAiResponse, LogprobsOfChatsCarryBytes) {
  const std::vector<TokenLogprob> top = {{'a', -0.25f}, {0xc3, -1.5f}};
  const std::vector<ScoredToken> tokens = {
      {.token = 257, .logprob = -0.1f, .top = top}};
  std::string out;
  AppendChatLogprobs(tokens, 2, FakeCodec(), &out);
  EXPECT_EQ(out,
            R"({"content":[{"token":"é","logprob":-0.1,"bytes":[195,169],)"
            R"("top_logprobs":[{"token":"a","logprob":-0.25,"bytes":[97]},)"
            "{\"token\":\"\ufffd\",\"logprob\":-1.5,\"bytes\":[195]}]}],"
            R"("refusal":null})");
}

TEST(OpenAiResponse, ModelsAndTokens) {
  EXPECT_EQ(ModelsBody("verse", "/models/v", 4096, 5),
            R"({"object":"list","data":[{"id":"verse","object":"model",)"
            R"("created":5,"owned_by":"moebius","root":"/models/v",)"
            R"("parent":null,"max_model_len":4096}]})");
  const std::vector<int32_t> ids = {'a', 0xc3};
  const FakeCodec codec;
  EXPECT_EQ(TokenizeBody(ids, 10, nullptr),
            R"({"count":2,"max_model_len":10,"tokens":[97,195],)"
            R"("token_strs":null})");
  EXPECT_EQ(TokenizeBody(ids, 10, &codec),
            R"({"count":2,"max_model_len":10,"tokens":[97,195],)"
            R"("token_strs":["a","bytes:\\xc3"]})");
  EXPECT_EQ(DetokenizeBody("a\xc3"), "{\"prompt\":\"a\ufffd\"}");
}

}  // namespace
}  // namespace moebius
