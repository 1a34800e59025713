// What the public routes answer.
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/unit/coordinator/api/openai_api_fixture.h"

namespace moebius {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::Not;
using testing::StartsWith;

TEST_F(OpenAiApiTest, WrongPathsAndMethodsAreJsonErrors) {
  Start();
  const TestResponse missing = Get("/v1/nothing");
  EXPECT_EQ(missing.status, 404);
  EXPECT_THAT(missing.body, HasSubstr("nothing is served at /v1/nothing"));
  const TestResponse method = Get("/v1/completions");
  EXPECT_EQ(method.status, 405);
  EXPECT_EQ(method.headers.at("allow"), "POST");
  EXPECT_EQ(Post("/v1/models", "{}").status, 405);
  EXPECT_EQ(Post("/health", "{}").status, 405);
  EXPECT_THAT(method.body, StartsWith(R"({"error":)"));
}

TEST_F(OpenAiApiTest, BadRequestsAre400sAndReachNoEngine) {
  Start();
  for (const char* path : {"/v1/completions", "/v1/chat/completions",
                           "/tokenize", "/detokenize"}) {
    EXPECT_EQ(Post(path, "").status, 400) << path;
    EXPECT_EQ(Post(path, "{\"a\":1,\"a\":2}").status, 400) << path;
    EXPECT_EQ(Post(path, std::string(100'000, '[')).status, 400) << path;
    EXPECT_EQ(Post(path, R"({"model":"other","prompt":"x","tokens":[1],
                             "messages":[]})")
                  .status,
              404)
        << path;
  }
  const TestResponse bad = Post("/v1/completions", R"({"prompt":"x","n":129})");
  EXPECT_EQ(bad.status, 400);
  EXPECT_EQ(Parse(bad.body)["error"]["param"], "n");
  EXPECT_EQ(engine_.num_submitted(), 0u);
}

TEST_F(OpenAiApiTest, AFullQueueIsA429ThatSaysWhenToComeBack) {
  Start();
  engine_.set_submit_error(absl::ResourceExhaustedError("the queue is full"));
  const TestResponse response = Post("/v1/completions", R"({"prompt":"x"})");
  EXPECT_EQ(response.status, 429);
  EXPECT_EQ(response.headers.at("retry-after"), "1");
  EXPECT_EQ(Parse(response.body)["error"]["code"], "queue_full");
  // The longer the queue is, and the more slowly it goes on, the later.
  EngineStatus status;
  status.waiting = 100;
  status.ended_recently = 10 * kRecentSeconds;
  engine_.set_status(status);
  EXPECT_EQ(
      Post("/v1/completions", R"({"prompt":"x"})").headers.at("retry-after"),
      "5");
}

TEST_F(OpenAiApiTest, NotReadyIsA503ThatSaysWhenToComeBack) {
  Start();
  engine_.set_submit_error(absl::UnavailableError("draining"));
  const TestResponse response =
      Post("/v1/chat/completions",
           R"({"messages":[{"role":"user","content":"x"}]})");
  EXPECT_EQ(response.status, 503);
  EXPECT_EQ(response.headers.at("retry-after"), "5");
}

TEST_F(OpenAiApiTest, WhatTheModelCannotTakeIsA400) {
  Start();
  engine_.set_submit_error(absl::InvalidArgumentError("too long"));
  EXPECT_EQ(Post("/v1/completions", R"({"prompt":"x"})").status, 400);
}

TEST_F(OpenAiApiTest, ProbesTellAliveFromReady) {
  Start();
  EXPECT_EQ(Get("/health").status, 200);
  EngineStatus status;
  status.not_ready_reason = "loading weights";
  engine_.set_status(status);
  const TestResponse starting = Get("/ready");
  EXPECT_EQ(starting.status, 503);
  EXPECT_EQ(starting.body, R"({"ready":false,"reason":"loading weights"})");
  status.ready = true;
  engine_.set_status(status);
  EXPECT_EQ(Get("/ready").status, 200);
  status.draining = true;
  engine_.set_status(status);
  EXPECT_EQ(Get("/ready").body, R"({"ready":false,"reason":"draining"})");
  EXPECT_EQ(Get("/health").status, 200);
}

TEST_F(OpenAiApiTest, ModelsAndVersionAreListed) {
  Start();
  const Json list = Parse(Get("/v1/models").body);
  EXPECT_EQ(list["data"][0]["id"], "verse");
  EXPECT_EQ(list["data"][0]["root"], "/models/verse");
  EXPECT_EQ(list["data"][0]["max_model_len"], 100'000);
  EXPECT_EQ(Parse(Get("/v1/models/verse").body)["id"], "verse");
  const TestResponse unknown = Get("/v1/models/gpt");
  EXPECT_EQ(unknown.status, 404);
  EXPECT_EQ(Parse(unknown.body)["error"]["code"], "model_not_found");
  EXPECT_EQ(Get("/version").body, R"({"version":"1.2.3"})");
}

TEST_F(OpenAiApiTest, TokenizeAndDetokenize) {
  Start();
  EXPECT_EQ(Parse(Post("/tokenize", R"({"prompt":"ab"})").body)["tokens"],
            Json::parse("[97,98]"));
  const Json chat =
      Parse(Post("/tokenize", R"({"messages":[{"role":"user","content":"x"}]})")
                .body);
  EXPECT_EQ(chat["count"], std::string("user:x;assistant:").size());
  EXPECT_EQ(Post("/detokenize", R"({"tokens":[97,257]})").body,
            R"({"prompt":"aé"})");
}

TEST_F(OpenAiApiTest, AWholeCompletion) {
  Start();
  TestClient client(port());
  ASSERT_TRUE(client.Send(HttpText(
      "POST", "/v1/completions",
      R"({"prompt":"ab","max_tokens":2,"seed":5,"return_token_ids":true})")));
  const auto submitted = engine_.TakeSubmitted(1);
  ASSERT_EQ(submitted.size(), 1u);
  EXPECT_EQ(submitted[0].generation.sampling.seed, 5u);
  EXPECT_EQ(submitted[0].generation.stop.max_tokens, 2);
  EXPECT_THAT(submitted[0].generation.prompt, ElementsAre('a', 'b'));
  engine_.Emit(TextOutput(submitted[0].id, "one", 7));
  engine_.Emit(LastOutput(submitted[0].id, " two"));
  const TestResponse response = client.ReadResponse();
  EXPECT_EQ(response.status, 200);
  const Json body = Parse(response.body);
  EXPECT_THAT(body["id"].get<std::string>(), StartsWith("cmpl-"));
  EXPECT_EQ(body["choices"][0]["text"], "one two");
  EXPECT_EQ(body["choices"][0]["finish_reason"], "length");
  EXPECT_EQ(body["choices"][0]["token_ids"], Json::parse("[7,120]"));
  EXPECT_EQ(body["choices"][0]["prompt_token_ids"], Json::parse("[97,98]"));
  EXPECT_EQ(body["usage"], Json::parse(R"({"prompt_tokens":2,
      "completion_tokens":2,"total_tokens":4})"));
}

TEST_F(OpenAiApiTest, ChoicesOfSeveralPromptsStandInOrder) {
  Start();
  TestClient client(port());
  ASSERT_TRUE(client.Send(
      HttpText("POST", "/v1/completions", R"({"prompt":["a","bc"],"n":2})")));
  const auto submitted = engine_.TakeSubmitted(4);
  ASSERT_EQ(submitted.size(), 4u);
  for (int i : {3, 1, 0, 2}) {  // they end in any order
    engine_.Emit(LastOutput(submitted[i].id, "choice " + std::to_string(i),
                            FinishReason::kStop));
  }
  const Json body = Parse(client.ReadResponse().body);
  for (int i = 0; i < 4; ++i) {
    EXPECT_EQ(body["choices"][i]["index"], i);
    EXPECT_EQ(body["choices"][i]["text"], "choice " + std::to_string(i));
  }
  EXPECT_EQ(body["usage"]["prompt_tokens"], 3);
}

TEST_F(OpenAiApiTest, UsageUpToEachEventIsOfItsChoice) {
  Start();
  TestClient client(port());
  ASSERT_TRUE(client.Send(
      HttpText("POST", "/v1/completions",
               R"({"prompt":"xyz","n":2,"stream":true,"stream_options":
          {"include_usage":true,"continuous_usage_stats":true}})")));
  const auto submitted = engine_.TakeSubmitted(2);
  ASSERT_EQ(submitted.size(), 2u);
  EXPECT_EQ(client.ReadHead().status, 200);
  const auto expect_usage = [&client](int prompt, int completion) {
    const Json usage = Parse(*client.ReadEvent())["usage"];
    EXPECT_EQ(usage["prompt_tokens"], prompt);
    EXPECT_EQ(usage["completion_tokens"], completion);
  };
  engine_.Emit(TextOutput(submitted[0].id, "a"));
  expect_usage(3, 1);
  engine_.Emit(TextOutput(submitted[1].id, "b"));
  expect_usage(3, 1);
  engine_.Emit(LastOutput(submitted[0].id, "c", FinishReason::kLength, ""));
  expect_usage(3, 2);
  engine_.Emit(LastOutput(submitted[1].id, "d", FinishReason::kLength, ""));
  expect_usage(3, 2);
  expect_usage(3, 4);  // of all
}

TEST_F(OpenAiApiTest, AStreamOfAChat) {
  Start();
  TestClient client(port());
  ASSERT_TRUE(client.Send(
      HttpText("POST", "/v1/chat/completions",
               R"({"messages":[{"role":"user","content":"x"}],"stream":true,
          "stop":"END","stream_options":{"include_usage":true}})")));
  const auto submitted = engine_.TakeSubmitted(1);
  ASSERT_EQ(submitted.size(), 1u);
  const TestResponse head = client.ReadHead();
  EXPECT_EQ(head.status, 200);
  EXPECT_EQ(head.headers.at("content-type"),
            "text/event-stream; charset=utf-8");
  engine_.Emit(TextOutput(submitted[0].id, "Hel"));
  const Json first = Parse(*client.ReadEvent());
  EXPECT_EQ(first["object"], "chat.completion.chunk");
  EXPECT_EQ(first["choices"][0]["delta"],
            Json::parse(R"({"role":"assistant","content":"Hel"})"));
  EXPECT_TRUE(first["usage"].is_null());
  engine_.Emit(TextOutput(submitted[0].id, ""));  // a character not yet whole
  EXPECT_EQ(Parse(*client.ReadEvent())["choices"][0]["delta"]["content"], "");
  engine_.Emit(LastOutput(submitted[0].id, "lo", FinishReason::kStop, "END"));
  const Json last = Parse(*client.ReadEvent());
  EXPECT_EQ(last["choices"][0]["delta"]["content"], "lo");
  EXPECT_EQ(last["choices"][0]["finish_reason"], "stop");
  EXPECT_EQ(last["choices"][0]["stop_reason"], "END");
  const Json usage = Parse(*client.ReadEvent());
  EXPECT_EQ(usage["choices"], Json::array());
  EXPECT_EQ(usage["usage"]["completion_tokens"], 3);
  EXPECT_EQ(client.ReadEvent(), "[DONE]");
  EXPECT_FALSE(client.ReadEvent().has_value());
  // The connection goes on.
  EXPECT_EQ(client.Exchange(HttpText("GET", "/health")).status, 200);
}

TEST_F(OpenAiApiTest, AStreamOfSeveralChoices) {
  Start();
  TestClient client(port());
  ASSERT_TRUE(client.Send(HttpText("POST", "/v1/completions",
                                   R"({"prompt":"a","n":2,"stream":true})")));
  const auto submitted = engine_.TakeSubmitted(2);
  ASSERT_EQ(submitted.size(), 2u);
  std::vector<Output> step;
  step.push_back(TextOutput(submitted[1].id, "b1"));
  step.push_back(LastOutput(submitted[0].id, "a1"));
  engine_.Emit(std::move(step));
  engine_.Emit(LastOutput(submitted[1].id, "b2"));
  client.ReadHead();
  std::string texts[2];
  std::optional<std::string> event;
  while ((event = client.ReadEvent()) && *event != "[DONE]") {
    const Json choice = Parse(*event)["choices"][0];
    texts[choice["index"].get<int>()] += choice["text"].get<std::string>();
  }
  EXPECT_EQ(texts[0], "a1");
  EXPECT_EQ(texts[1], "b1b2");
}

Output PromptScores(RequestId id) {
  Output output;
  output.request = id;
  PromptLogprob score;
  score.position = 1;
  score.token = 'b';
  score.logprob = -0.5f;
  score.top = {{'c', -0.25f}};
  score.rank = 7;
  output.prompt_logprobs.push_back(score);
  return output;
}

// As in vLLM: null first, then the token and the likeliest, by id.
constexpr char kPromptLogprobs[] =
    R"([null,{"98":{"logprob":-0.5,"rank":7,"decoded_token":"b"},)"
    R"("99":{"logprob":-0.25,"rank":1,"decoded_token":"c"}}])";

TEST_F(OpenAiApiTest, PromptLogprobsAreInTheChoicesOfCompletions) {
  Start();
  for (const int wanted : {0, 1}) {
    TestClient client(port());
    ASSERT_TRUE(
        client.Send(HttpText("POST", "/v1/completions",
                             R"({"prompt":"ab","n":2,"prompt_logprobs":)" +
                                 std::to_string(wanted) + "}")));
    const auto submitted = engine_.TakeSubmitted(2);
    ASSERT_EQ(submitted.size(), 2u);
    for (const auto& one : submitted) {
      EXPECT_EQ(one.generation.sampling.num_prompt_logprobs, wanted);
      engine_.Emit(PromptScores(one.id));
      engine_.Emit(LastOutput(one.id, "x"));
    }
    const Json body = Parse(client.ReadResponse().body);
    EXPECT_FALSE(body.contains("prompt_logprobs"));
    for (const Json& choice : body["choices"]) {
      Json expected = Parse(kPromptLogprobs);
      if (wanted == 0) expected[1].erase("99");
      EXPECT_EQ(choice["prompt_logprobs"], expected);
      EXPECT_EQ(choice["logprobs"], nullptr);
    }
  }
}

TEST_F(OpenAiApiTest, WhatChatsSayOfTheirPromptStandsBesideTheChoices) {
  Start();
  const std::string text = "user:x;assistant:";
  const Json prompt_ids = std::vector<int>(text.begin(), text.end());
  const std::string body =
      R"({"messages":[{"role":"user","content":"x"}],"n":2,)"
      R"("return_token_ids":true)";
  TestClient client(port());
  ASSERT_TRUE(client.Send(HttpText("POST", "/v1/chat/completions",
                                   body + R"(,"prompt_logprobs":1})")));
  for (const auto& one : engine_.TakeSubmitted(2)) {
    engine_.Emit(PromptScores(one.id));
    engine_.Emit(LastOutput(one.id, "y"));
  }
  const Json whole = Parse(client.ReadResponse().body);
  EXPECT_EQ(whole["prompt_token_ids"], prompt_ids);
  EXPECT_EQ(whole["choices"][1]["prompt_token_ids"], prompt_ids);
  EXPECT_EQ(whole["choices"][0]["token_ids"], Json::array({'x'}));
  ASSERT_EQ(whole["prompt_logprobs"].size(), text.size());
  EXPECT_EQ(whole["prompt_logprobs"][1], Parse(kPromptLogprobs)[1]);
  EXPECT_FALSE(whole["choices"][0].contains("prompt_logprobs"));

  TestClient streaming(port());
  ASSERT_TRUE(streaming.Send(
      HttpText("POST", "/v1/chat/completions", body + R"(,"stream":true})")));
  const auto submitted = engine_.TakeSubmitted(2);
  engine_.Emit(TextOutput(submitted[0].id, "y"));
  engine_.Emit(LastOutput(submitted[0].id, "z"));
  engine_.Emit(LastOutput(submitted[1].id, "z"));
  streaming.ReadHead();
  const Json first = Parse(*streaming.ReadEvent());
  EXPECT_EQ(first["prompt_token_ids"], prompt_ids);
  EXPECT_EQ(first["choices"][0]["prompt_token_ids"], prompt_ids);
  const Json second = Parse(*streaming.ReadEvent());
  EXPECT_FALSE(second.contains("prompt_token_ids"));
  EXPECT_FALSE(second["choices"][0].contains("prompt_token_ids"));
}

TEST_F(OpenAiApiTest, EchoRepeatsAndScoresThePrompt) {
  Start();
  for (const bool stream : {false, true}) {
    TestClient client(port());
    ASSERT_TRUE(client.Send(HttpText(
        "POST", "/v1/completions",
        std::string(R"({"prompt":"ab","echo":true,"logprobs":1,"stream":)") +
            (stream ? "true}" : "false}"))));
    const auto submitted = engine_.TakeSubmitted(1);
    ASSERT_EQ(submitted.size(), 1u);
    EXPECT_EQ(submitted[0].generation.sampling.num_prompt_logprobs, 1);
    engine_.Emit(PromptScores(submitted[0].id));
    Output last = LastOutput(submitted[0].id, "x");
    last.tokens[0].logprob = -1.5f;
    engine_.Emit(std::move(last));
    Json body;
    if (stream) {
      client.ReadHead();
      body = Parse(*client.ReadEvent());
      EXPECT_EQ(client.ReadEvent(), "[DONE]");
    } else {
      body = Parse(client.ReadResponse().body);
    }
    const Json& choice = body["choices"][0];
    EXPECT_EQ(choice["text"], "abx");
    EXPECT_EQ(choice["logprobs"].dump(),
              R"({"tokens":["a","b","x"],"token_logprobs":[null,-0.5,-1.5],)"
              R"("top_logprobs":[null,{"c":-0.25,"b":-0.5},{"x":-1.5}],)"
              R"("text_offset":[0,1,2]})");
  }
}

TEST_F(OpenAiApiTest, ScoringAPromptShowsNoToken) {
  Start();
  for (const bool stream : {false, true}) {
    TestClient client(port());
    ASSERT_TRUE(client.Send(
        HttpText("POST", "/v1/completions",
                 std::string(R"({"prompt":"ab","echo":true,"logprobs":1,
            "max_tokens":0,"return_token_ids":true,"stream":)") +
                     (stream ? "true}" : "false}"))));
    const auto submitted = engine_.TakeSubmitted(1);
    ASSERT_EQ(submitted.size(), 1u);
    EXPECT_EQ(submitted[0].generation.stop.max_tokens, 1);
    engine_.Emit(PromptScores(submitted[0].id));
    engine_.Emit(LastOutput(submitted[0].id, "x", FinishReason::kStop));
    Json body;
    if (stream) {
      client.ReadHead();
      body = Parse(*client.ReadEvent());
      EXPECT_EQ(client.ReadEvent(), "[DONE]");
    } else {
      body = Parse(client.ReadResponse().body);
      EXPECT_EQ(body["usage"]["completion_tokens"], 0);
    }
    const Json& choice = body["choices"][0];
    EXPECT_EQ(choice["text"], "ab");
    EXPECT_EQ(choice["finish_reason"], "length");
    EXPECT_EQ(choice["token_ids"], Json::array());
    EXPECT_EQ(choice["logprobs"]["tokens"].size(), 2u);
  }
}

TEST_F(OpenAiApiTest, ChatLogprobsComeWithTheirTokens) {
  Start();
  TestClient client(port());
  ASSERT_TRUE(client.Send(
      HttpText("POST", "/v1/chat/completions",
               R"({"messages":[{"role":"user","content":"x"}],"logprobs":true,
          "top_logprobs":1})")));
  const auto submitted = engine_.TakeSubmitted(1);
  ASSERT_EQ(submitted.size(), 1u);
  Output last = LastOutput(submitted[0].id, "é", FinishReason::kStop);
  last.tokens[0].token = 257;
  last.tokens[0].logprob = -0.5f;
  last.tokens[0].top = {{257, -0.5f}};
  engine_.Emit(std::move(last));
  const Json body = Parse(client.ReadResponse().body);
  EXPECT_EQ(body["choices"][0]["logprobs"]["content"][0].dump(),
            R"({"token":"é","logprob":-0.5,"bytes":[195,169],"top_logprobs":)"
            R"([{"token":"é","logprob":-0.5,"bytes":[195,169]}]})");
}

TEST_F(OpenAiApiTest, AnEngineThatGivesUpCutsTheAnswerInAWordOfOpenAis) {
  Start();
  TestClient client(port());
  ASSERT_TRUE(
      client.Send(HttpText("POST", "/v1/completions", R"({"prompt":"a"})")));
  const auto submitted = engine_.TakeSubmitted(1);
  ASSERT_EQ(submitted.size(), 1u);
  Output output;
  output.request = submitted[0].id;
  output.finish = FinishReason::kAbort;
  engine_.Emit(std::move(output));
  const Json choice = Parse(client.ReadResponse().body)["choices"][0];
  EXPECT_EQ(choice["finish_reason"], "length");
  EXPECT_EQ(choice["stop_reason"], "abort");
}

TEST_F(OpenAiApiTest, WhatTheWorkersRefuseIsAnErrorInsteadOfAnAnswer) {
  Start();
  for (const bool stream : {false, true}) {
    TestClient client(port());
    ASSERT_TRUE(client.Send(HttpText("POST", "/v1/completions",
                                     std::string(R"({"prompt":"a","stream":)") +
                                         (stream ? "true}" : "false}"))));
    const auto submitted = engine_.TakeSubmitted(1);
    ASSERT_EQ(submitted.size(), 1u);
    Output accepted;
    accepted.request = submitted[0].id;
    accepted.accepted = true;
    engine_.Emit(std::move(accepted));
    Output refused;
    refused.request = submitted[0].id;
    refused.finish = FinishReason::kError;
    refused.stop_reason = "token 4096 at position 2";
    engine_.Emit(std::move(refused));
    Json error;
    if (stream) {
      // The head had gone out with the acceptance.
      EXPECT_EQ(client.ReadHead().status, 200);
      error = Parse(client.ReadEvent().value_or("{}"))["error"];
      EXPECT_EQ(client.ReadEvent().value_or(""), "[DONE]");
    } else {
      const TestResponse response = client.ReadResponse();
      EXPECT_EQ(response.status, 400);
      error = Parse(response.body)["error"];
    }
    EXPECT_EQ(error["message"], "token 4096 at position 2");
    EXPECT_EQ(error["type"], "invalid_request_error");
  }
}

TEST_F(OpenAiApiTest, OutputsMayComeBeforeSubmitReturns) {
  engine_.set_on_submit([this](std::vector<RequestId> ids) {
    // On another thread, as the engine's would be.
    std::thread([&] { engine_.Emit(LastOutput(ids[0], "early")); }).join();
  });
  Start(/*num_threads=*/3);
  for (int i = 0; i < 20; ++i) {
    const TestResponse response = Post("/v1/completions", R"({"prompt":"a"})");
    EXPECT_EQ(Parse(response.body)["choices"][0]["text"], "early");
  }
}

TEST_F(OpenAiApiTest, WithKeysOnlyProbesAreAnsweredWithoutOne) {
  keys_ = *ApiKeys::Parse("sk-0123456789abcdef", "k");
  Start();
  EXPECT_EQ(Get("/health").status, 200);
  EXPECT_EQ(Get("/version").status, 200);
  EXPECT_EQ(Get("/%68ealth").status, 200);  // the same path
  EXPECT_EQ(Get("/v1/models").status, 401);
  EXPECT_EQ(Get("/a-path-that-nobody-serves").status, 401);
  const TestResponse refused = Post("/v1/completions", R"({"prompt":"a"})");
  EXPECT_EQ(refused.status, 401);
  EXPECT_EQ(refused.headers.at("www-authenticate"), "Bearer");
  EXPECT_EQ(refused.headers.at("content-type"), "application/json");
  const std::string header = "Authorization: Bearer sk-0123456789abcdef\r\n";
  TestClient client(port());
  EXPECT_EQ(client.Exchange(HttpText("GET", "/v1/models", "", header)).status,
            200);
  EXPECT_EQ(
      client
          .Exchange(HttpText("POST", "/tokenize", R"({"prompt":"a"})", header))
          .status,
      200);
  // Why it is not ready is nobody's business who has none.
  EngineStatus status;
  status.not_ready_reason = "worker 1: no file /srv/models/secret";
  engine_.set_status(status);
  const TestResponse unready = Get("/ready");
  EXPECT_EQ(unready.status, 503);
  EXPECT_THAT(unready.body, Not(HasSubstr("secret")));
  EXPECT_THAT(client.Exchange(HttpText("GET", "/ready", "", header)).body,
              HasSubstr("/srv/models/secret"));
  // A key is for one request: the next on the connection shows its own.
  EXPECT_EQ(client.Exchange(HttpText("GET", "/v1/models")).status, 401);
  // Counted under our names.
  const auto counted = metrics_.Get().requests;
  const auto count = [&](const std::string& route) {
    for (const auto& [key, number] : counted) {
      if (key == std::pair(route, 401)) return number;
    }
    return uint64_t{0};
  };
  EXPECT_EQ(count("/v1/models"), 2u);
  EXPECT_EQ(count("/v1/completions"), 1u);
  EXPECT_EQ(count("other"), 1u);
}

// Steps that arrive while the io thread is busy are sent together, whole and in
// order.

}  // namespace
}  // namespace moebius
