// The public routes over loopback sockets, with an engine that does what the
// test says.
#include "coordinator/api/openai_api.h"

#include <latch>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "coordinator/api/http_server.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/status_matchers.h"
#include "tests/unit/api/fake_codec.h"
#include "tests/unit/api/fake_engine.h"
#include "tests/unit/api/test_client.h"

namespace moebius {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::StartsWith;

class OpenAiApiTest : public testing::Test {
 protected:
  ~OpenAiApiTest() override {
    if (server_) server_->Stop();
    threads_->Stop();
  }

  void Start(int num_threads = 1) {
    threads_ = std::make_unique<IoThreads>(num_threads, "test-http");
    OpenAiApiOptions options;
    options.limits.model = "verse";
    options.limits.max_model_len = 100'000;
    options.limits.vocab_size = kFakeVocab;
    options.limits.defaults.eos_ids = {kFakeEos};
    options.model_root = "/models/verse";
    options.version = "1.2.3";
    options.max_preparing = max_preparing_;
    options.resume_window = resume_window_;
    options.max_preparing_bytes = max_preparing_bytes_;
    options.keys = keys_;
    api_ = std::make_unique<OpenAiApi>(engine_, *codec_, *threads_, metrics_,
                                       options);
    engine_.set_listener([this](std::vector<Output> outputs) {
      api_->OnOutputs(std::move(outputs));
    });
    auto server = HttpServer::Start(http_options_, *threads_, *api_);
    ASSERT_THAT(server, IsOk());
    server_ = std::move(*server);
  }
  int port() const { return server_->port(); }

  TestResponse Post(const std::string& path, const std::string& body) {
    return TestClient(port()).Exchange(HttpText("POST", path, body));
  }
  TestResponse Get(const std::string& path) {
    return TestClient(port()).Exchange(HttpText("GET", path));
  }

  HttpServerOptions http_options_;
  FakeEngine engine_;
  int max_preparing_ = 256;
  std::chrono::milliseconds resume_window_{60'000};
  size_t max_preparing_bytes_ = size_t{128} << 20;
  std::optional<ApiKeys> keys_;
  std::unique_ptr<TextCodec> codec_ = std::make_unique<FakeCodec>();
  FrontMetrics metrics_;
  std::unique_ptr<IoThreads> threads_;
  std::unique_ptr<OpenAiApi> api_;
  std::unique_ptr<HttpServer> server_;
};

Json Parse(const std::string& text) {
  auto value = ParseJson(text);
  EXPECT_THAT(value, IsOk()) << text;
  return value.ok() ? *value : Json();
}

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
  const TestResponse bad = Post("/v1/completions", R"({"prompt":"x","n":9})");
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

// ---- requests that come again ----------------------------------------------

std::string WithKey(const std::string& body, const std::string& headers) {
  std::string text = HttpText("POST", "/v1/completions", body);
  return text.insert(text.find("\r\n") + 2, headers);
}

constexpr char kStreamed[] = R"({"prompt":"a","stream":true,"max_tokens":9})";

TEST_F(OpenAiApiTest, AClientThatComesBackGetsWhatItHasNotSeen) {
  Start();
  TestClient client(port());
  ASSERT_TRUE(client.Send(WithKey(kStreamed, "Idempotency-Key: k1\r\n")));
  const auto submitted = engine_.TakeSubmitted(1);
  ASSERT_EQ(submitted.size(), 1u);
  const RequestId id = submitted[0].id;
  EXPECT_EQ(client.ReadHead().status, 200);
  engine_.Emit(TextOutput(id, "one "));
  const Json first = Parse(*client.ReadEvent());
  EXPECT_EQ(client.last_id(), "1");

  // A second connection of the same key, from the beginning; it is no second
  // generation.
  TestClient other(port());
  ASSERT_TRUE(other.Send(WithKey(kStreamed, "Idempotency-Key: k1\r\n")));
  auto [ids, attach] = engine_.TakeAttached();
  EXPECT_EQ(ids, std::vector<RequestId>{id});
  attach(std::vector<Output>{TextOutput(id, "one ")});
  EXPECT_EQ(other.ReadHead().status, 200);
  const Json again = Parse(*other.ReadEvent());
  EXPECT_EQ(again["id"], first["id"]);
  EXPECT_EQ(again["choices"][0]["text"], "one ");

  // A third that has the first token already.
  TestClient third(port());
  ASSERT_TRUE(third.Send(
      WithKey(kStreamed, "Idempotency-Key: k1\r\nLast-Event-ID: 1\r\n")));
  auto [same, attach_third] = engine_.TakeAttached();
  attach_third(std::vector<Output>{TextOutput(id, "one ")});
  EXPECT_EQ(third.ReadHead().status, 200);

  engine_.Emit(LastOutput(id, "two"));
  for (TestClient* one : {&client, &other, &third}) {
    EXPECT_EQ(Parse(*one->ReadEvent())["choices"][0]["text"], "two");
    EXPECT_EQ(one->last_id(), "2");
    EXPECT_EQ(one->ReadEvent(), "[DONE]");
  }
  EXPECT_EQ(engine_.num_submitted(), 0u);
}

TEST_F(OpenAiApiTest, AKeyBelongsToOneRequestAndOneClient) {
  Start();
  TestClient client(port());
  ASSERT_TRUE(client.Send(WithKey(kStreamed, "Idempotency-Key: k1\r\n")));
  ASSERT_EQ(engine_.TakeSubmitted(1).size(), 1u);
  const TestResponse reused = TestClient(port()).Exchange(
      WithKey(R"({"prompt":"b"})", "Idempotency-Key: k1\r\n"));
  EXPECT_EQ(reused.status, 409);
  EXPECT_EQ(Parse(reused.body)["error"]["code"], "idempotency_key_reused");
  // Other credentials, another key.
  TestClient stranger(port());
  ASSERT_TRUE(stranger.Send(WithKey(
      kStreamed, "Idempotency-Key: k1\r\nAuthorization: Bearer x\r\n")));
  EXPECT_EQ(engine_.TakeSubmitted(1).size(), 1u);
}

TEST_F(OpenAiApiTest, BadKeysAndEventIdsAre400s) {
  Start();
  for (const std::string& headers :
       {std::string("Idempotency-Key: \r\n"),
        "Idempotency-Key: " + std::string(kMaxKeyBytes + 1, 'k') + "\r\n",
        std::string("Last-Event-ID: x\r\n"),
        std::string("Last-Event-ID: -1\r\n"),
        std::string("Last-Event-ID: 1-2\r\n"),
        std::string("Last-Event-ID: 99999999999\r\n")}) {
    EXPECT_EQ(TestClient(port()).Exchange(WithKey(kStreamed, headers)).status,
              400)
        << headers;
  }
  EXPECT_EQ(engine_.num_submitted(), 0u);
}

TEST_F(OpenAiApiTest, OnlyAKeyKeepsARequestWithoutItsClient) {
  resume_window_ = std::chrono::milliseconds(50);
  Start();
  RequestId kept, dropped;
  {
    TestClient with(port()), without(port());
    ASSERT_TRUE(with.Send(WithKey(kStreamed, "Idempotency-Key: k1\r\n")));
    kept = engine_.TakeSubmitted(1)[0].id;
    ASSERT_TRUE(without.Send(WithKey(kStreamed, "")));
    dropped = engine_.TakeSubmitted(1)[0].id;
    with.ReadHead();
    without.ReadHead();
  }
  EXPECT_TRUE(engine_.WaitForAbort(dropped));
  EXPECT_TRUE(engine_.WaitForAbort(kept));  // once its time is over
}

TEST_F(OpenAiApiTest, ARequestOfAnEarlierCoordinatorIsFoundByItsKey) {
  Start();
  {
    TestClient client(port());
    ASSERT_TRUE(client.Send(WithKey(kStreamed, "Idempotency-Key: k1\r\n")));
    ASSERT_EQ(engine_.TakeSubmitted(1).size(), 1u);
  }
  const std::string context = engine_.LastContext();
  // Another front.
  server_->Stop();
  threads_->Stop();
  server_.reset();
  api_.reset();
  Start();
  EXPECT_FALSE(api_->Restore(RequestId{70}, 1, true, "nonsense").ok());
  ASSERT_THAT(api_->Restore(RequestId{71}, 1, true, context), IsOk());
  TestClient client(port());
  ASSERT_TRUE(client.Send(
      WithKey(kStreamed, "Idempotency-Key: k1\r\nLast-Event-ID: 1\r\n")));
  auto [ids, attach] = engine_.TakeAttached();
  EXPECT_EQ(ids, std::vector<RequestId>{RequestId{71}});
  std::vector<Output> so_far;
  so_far.push_back(TextOutput(RequestId{71}, "one "));
  so_far.push_back(LastOutput(RequestId{71}, "two"));
  attach(std::move(so_far));
  EXPECT_EQ(client.ReadHead().status, 200);
  EXPECT_EQ(Parse(*client.ReadEvent())["choices"][0]["text"], "two");
  EXPECT_EQ(client.ReadEvent(), "[DONE]");
  // Forgotten, the key is free again.
  api_->OnForgotten({RequestId{71}});
  TestClient anew(port());
  ASSERT_TRUE(anew.Send(WithKey(kStreamed, "Idempotency-Key: k1\r\n")));
  EXPECT_EQ(engine_.TakeSubmitted(1).size(), 1u);
}

TEST_F(OpenAiApiTest, WhatTheJournalCannotTakeIsA503) {
  engine_.set_accepting(false);
  Start();
  TestClient client(port());
  ASSERT_TRUE(client.Send(HttpText("POST", "/v1/completions", kStreamed)));
  const auto submitted = engine_.TakeSubmitted(1);
  ASSERT_EQ(submitted.size(), 1u);
  Output refused;
  refused.request = submitted[0].id;
  refused.finish = FinishReason::kAbort;
  refused.refused = absl::UnavailableError("the journal cannot be written");
  engine_.Emit(std::move(refused));
  const TestResponse head = client.ReadHead();
  EXPECT_EQ(head.status, 503);
}

// prompt "ab": the first token has no score.
Output PromptScores(RequestId id) {
  Output output;
  output.request = id;
  PromptLogprob score;
  score.position = 1;
  score.token = 'b';
  score.logprob = -0.5f;
  score.top = {{'c', -0.25f}};
  output.prompt_logprobs.push_back(score);
  return output;
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

TEST_F(OpenAiApiTest, AnEngineThatGivesUpEndsTheAnswerWithAbort) {
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
  EXPECT_EQ(Parse(client.ReadResponse().body)["choices"][0]["finish_reason"],
            "abort");
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

TEST_F(OpenAiApiTest, AClientThatLeavesFreesItsGenerations) {
  Start();
  for (const char* stream : {"false", "true"}) {
    TestClient client(port());
    ASSERT_TRUE(client.Send(HttpText(
        "POST", "/v1/completions",
        std::string(R"({"prompt":"a","n":3,"stream":)") + stream + "}")));
    const auto submitted = engine_.TakeSubmitted(3);
    ASSERT_EQ(submitted.size(), 3u);
    const size_t before = engine_.num_aborted();
    engine_.Emit(LastOutput(submitted[1].id, "done"));
    if (stream == std::string("true")) client.ReadHead();
    // The finished one is not aborted; a round trip makes sure it is finished.
    ASSERT_EQ(Get("/health").status, 200);
    client.Close();
    EXPECT_TRUE(engine_.WaitForAbort(submitted[0].id));
    EXPECT_TRUE(engine_.WaitForAbort(submitted[2].id));
    EXPECT_EQ(engine_.num_aborted(), before + 2);
    // What was under way for it reaches nobody.
    engine_.Emit(TextOutput(submitted[0].id, "late"));
    EXPECT_EQ(Get("/health").status, 200);
  }
  EXPECT_EQ(metrics_.Get().disconnects, 2u);
}

TEST_F(OpenAiApiTest, ASlowReaderIsCutOffAndHoldsNobodyUp) {
  http_options_.max_stream_buffer_bytes = 64 << 10;
  http_options_.socket_send_buffer_bytes = 8 << 10;
  Start();
  const std::string request =
      HttpText("POST", "/v1/completions",
               R"({"prompt":"a","max_tokens":1000,"stream":true})");
  TestClient slow(port(), /*receive_bytes=*/4096), quick(port());
  ASSERT_TRUE(slow.Send(request));
  const RequestId slow_id = engine_.TakeSubmitted(1).at(0).id;
  ASSERT_TRUE(quick.Send(request));
  const RequestId quick_id = engine_.TakeSubmitted(1).at(0).id;
  EXPECT_EQ(quick.ReadHead().status, 200);
  const std::string text(4 << 10, 'x');
  for (int i = 0; i < 200; ++i) {
    std::vector<Output> step;
    step.push_back(TextOutput(slow_id, text));
    step.push_back(TextOutput(quick_id, text));
    engine_.Emit(std::move(step));
    ASSERT_TRUE(quick.ReadEvent().has_value());
  }
  EXPECT_TRUE(engine_.WaitForAbort(slow_id));
  EXPECT_EQ(engine_.num_aborted(), 1u);
}

TEST_F(OpenAiApiTest, ALargeBodyIsPreparedApartAndAnswered) {
  Start();
  TestClient client(port());
  const std::string prompt(90'000, 'y');
  ASSERT_TRUE(client.Send(
      HttpText("POST", "/v1/completions", R"({"prompt":")" + prompt + "\"}")));
  const auto submitted = engine_.TakeSubmitted(1);
  ASSERT_EQ(submitted.size(), 1u);
  EXPECT_EQ(submitted[0].generation.prompt.size(), prompt.size());
  engine_.Emit(LastOutput(submitted[0].id, "ok"));
  EXPECT_EQ(Parse(client.ReadResponse().body)["choices"][0]["text"], "ok");
  const TestResponse too_long = Post(
      "/v1/completions", R"({"prompt":")" + std::string(100'000, 'y') + "\"}");
  EXPECT_EQ(too_long.status, 400);
  EXPECT_THAT(too_long.body, HasSubstr("context holds 100000 tokens, but the "
                                       "prompt has 100000"));
}

// Holds every text longer than a few bytes up until told to go on.
class HeldCodec final : public TextCodec {
 public:
  absl::StatusOr<std::vector<int32_t>> Encode(
      std::string_view text) const override {
    if (text.size() > 100) {
      held.count_down();
      go.wait();
    }
    return codec_.Encode(text);
  }
  std::string Decode(absl::Span<const int32_t> tokens) const override {
    return codec_.Decode(tokens);
  }
  std::string TokenBytes(int32_t token) const override {
    return codec_.TokenBytes(token);
  }
  absl::StatusOr<std::string> RenderChat(
      const ChatInput& input) const override {
    return codec_.RenderChat(input);
  }
  mutable std::latch held{1};
  std::latch go{1};

 private:
  FakeCodec codec_;
};

TEST_F(OpenAiApiTest, LargeBodiesHoldNobodyUpAndTheirQueueIsBounded) {
  auto held_codec = std::make_unique<HeldCodec>();
  HeldCodec& codec = *held_codec;
  codec_ = std::move(held_codec);
  max_preparing_ = 1;
  Start();
  const std::string large =
      HttpText("POST", "/v1/completions",
               R"({"prompt":")" + std::string(20'000, 'y') + "\"}");
  TestClient first(port());
  ASSERT_TRUE(first.Send(large));
  codec.held.wait();
  const TestResponse refused = TestClient(port()).Exchange(large);
  EXPECT_EQ(refused.status, 429);
  EXPECT_EQ(refused.headers.at("retry-after"), "1");
  EXPECT_EQ(Post("/tokenize", R"({"prompt":"ab"})").status, 200);
  codec.go.count_down();
  const auto submitted = engine_.TakeSubmitted(1);
  ASSERT_EQ(submitted.size(), 1u);
  engine_.Emit(LastOutput(submitted[0].id, "ok"));
  EXPECT_EQ(first.ReadResponse().status, 200);
}

TEST_F(OpenAiApiTest, LargeBodiesInTheQueueAreBoundedInBytes) {
  auto held_codec = std::make_unique<HeldCodec>();
  HeldCodec& codec = *held_codec;
  codec_ = std::move(held_codec);
  max_preparing_bytes_ = 50'000;
  Start();
  const auto large = [](size_t size) {
    return HttpText("POST", "/v1/completions",
                    R"({"prompt":")" + std::string(size, 'y') + "\"}");
  };
  TestClient first(port());
  // Beyond the bound, and alone.
  ASSERT_TRUE(first.Send(large(60'000)));
  codec.held.wait();
  EXPECT_EQ(TestClient(port()).Exchange(large(9'000)).status, 429);
  codec.go.count_down();
  const auto submitted = engine_.TakeSubmitted(1);
  ASSERT_EQ(submitted.size(), 1u);
  engine_.Emit(LastOutput(submitted[0].id, "ok"));
  EXPECT_EQ(first.ReadResponse().status, 200);
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
TEST_F(OpenAiApiTest, StepsThatPileUpAreSentTogether) {
  Start();
  TestClient client(port());
  ASSERT_TRUE(client.Send(
      HttpText("POST", "/v1/completions", R"({"prompt":"a","stream":true})")));
  const RequestId id = engine_.TakeSubmitted(1).at(0).id;
  client.ReadHead();
  std::latch busy(1), released(1);
  threads_->Post(0, [&] {
    busy.count_down();
    released.wait();
  });
  busy.wait();
  for (int i = 0; i < 50; ++i) {
    engine_.Emit(TextOutput(id, std::to_string(i) + ","));
  }
  engine_.Emit(LastOutput(id, "end"));
  released.count_down();
  std::string text, expected;
  std::optional<std::string> event;
  while ((event = client.ReadEvent()) && *event != "[DONE]") {
    text += Parse(*event)["choices"][0]["text"].get<std::string>();
  }
  for (int i = 0; i < 50; ++i) expected += std::to_string(i) + ",";
  EXPECT_EQ(text, expected + "end");
}

TEST_F(OpenAiApiTest, AThousandStreamsAtOnce) {
  constexpr int kStreams = 1000;
  constexpr int kSteps = 10;
  Start(/*num_threads=*/2);
  const std::string request =
      HttpText("POST", "/v1/completions", R"({"prompt":"a","stream":true})");
  std::vector<TestClient> clients;
  std::vector<RequestId> ids;
  for (int i = 0; i < kStreams; ++i) {
    clients.emplace_back(port());
    ASSERT_TRUE(clients.back().Send(request)) << i;
    const auto submitted = engine_.TakeSubmitted(1);
    ASSERT_EQ(submitted.size(), 1u);
    ids.push_back(submitted[0].id);
  }
  for (int step = 0; step < kSteps; ++step) {
    std::vector<Output> outputs;
    for (int i = 0; i < kStreams; ++i) {
      const std::string text =
          std::to_string(i) + ":" + std::to_string(step) + ";";
      outputs.push_back(step + 1 == kSteps ? LastOutput(ids[i], text)
                                           : TextOutput(ids[i], text));
    }
    engine_.Emit(std::move(outputs));
  }
  for (int i = 0; i < kStreams; ++i) {
    ASSERT_EQ(clients[i].ReadHead().status, 200) << i;
    std::string text, expected;
    std::optional<std::string> event;
    while ((event = clients[i].ReadEvent()) && *event != "[DONE]") {
      text += Parse(*event)["choices"][0]["text"].get<std::string>();
    }
    for (int step = 0; step < kSteps; ++step) {
      expected += std::to_string(i) + ":" + std::to_string(step) + ";";
    }
    ASSERT_EQ(text, expected);
  }
  EXPECT_EQ(engine_.num_aborted(), 0u);
}

TEST_F(OpenAiApiTest, StoppingTheServerFreesWhatIsUnderWay) {
  Start();
  TestClient client(port());
  ASSERT_TRUE(client.Send(
      HttpText("POST", "/v1/completions", R"({"prompt":"a","stream":true})")));
  const auto submitted = engine_.TakeSubmitted(1);
  ASSERT_EQ(submitted.size(), 1u);
  client.ReadHead();
  server_->Stop();
  EXPECT_TRUE(engine_.WaitForAbort(submitted[0].id));
}

}  // namespace
}  // namespace moebius
