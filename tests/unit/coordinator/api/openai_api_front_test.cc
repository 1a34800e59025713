// What holds for every route: who may come in, what answers carry, what wrong
// paths are told, and comments on silent streams.
#include <chrono>
#include <optional>
#include <set>
#include <string>

#include "common/base/cat.h"
#include "coordinator/api/admission.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/unit/coordinator/api/openai_api_fixture.h"

namespace moebius {
namespace {

using testing::AllOf;
using testing::HasSubstr;

constexpr char kStreamed[] = R"({"prompt":"a","stream":true,"max_tokens":9})";
constexpr char kPage[] = "Origin: https://pages.example\r\n";

TEST_F(OpenAiApiTest, AForeignPageGetsA403AndReachesNoEngine) {
  Start();
  const TestResponse answer = TestClient(port()).Exchange(
      HttpText("POST", "/v1/completions", kStreamed, kPage));
  EXPECT_EQ(answer.status, 403);
  EXPECT_EQ(Parse(answer.body)["error"]["code"], "foreign_origin");
  EXPECT_FALSE(answer.headers.contains("access-control-allow-origin"));
  const TestResponse rebound = TestClient(port()).Exchange(
      "GET /v1/models HTTP/1.1\r\nHost: pages.example\r\n\r\n");
  EXPECT_EQ(rebound.status, 403);
  EXPECT_EQ(Parse(rebound.body)["error"]["code"], "foreign_host");
  EXPECT_EQ(engine_.num_submitted(), 0u);
}

TEST_F(OpenAiApiTest, WithoutAllowedOriginsNoPreflightIsAnswered) {
  Start();
  const std::string preflight = HttpText(
      "OPTIONS", "/v1/completions", "",
      "Origin: http://localhost:3000\r\nAccess-Control-Request-Method: "
      "POST\r\n");
  const TestResponse answer = TestClient(port()).Exchange(preflight);
  EXPECT_EQ(answer.status, 405);
  EXPECT_FALSE(answer.headers.contains("access-control-allow-origin"));
}

TEST_F(OpenAiApiTest, APageOfAnAllowedOriginUsesTheApiFromABrowser) {
  admission_ =
      MakeAdmissionRules(true, "127.0.0.1", "", "https://pages.example");
  auto keys = ApiKeys::Parse("sk-0123456789abcdef", "k");
  ASSERT_THAT(keys, IsOk());
  keys_ = *std::move(keys);
  Start();
  TestClient client(port());
  // The preflight shows no key, and the connection goes on.
  ASSERT_TRUE(client.Send(HttpText(
      "OPTIONS", "/v1/completions", "",
      Cat(kPage,
          "Access-Control-Request-Method: POST\r\nAccess-Control-Request-"
          "Headers: authorization,content-type\r\n"))));
  const TestResponse preflight = client.ReadHead();
  EXPECT_EQ(preflight.status, 204);
  EXPECT_EQ(preflight.headers.at("access-control-allow-origin"),
            "https://pages.example");
  EXPECT_EQ(preflight.headers.at("access-control-allow-headers"),
            "authorization,content-type");
  ASSERT_TRUE(client.Send(
      HttpText("POST", "/v1/completions", kStreamed,
               Cat(kPage, "Authorization: Bearer sk-0123456789abcdef\r\n"))));
  const TestResponse stream = client.ReadHead();
  EXPECT_EQ(stream.status, 200);
  EXPECT_EQ(stream.headers.at("access-control-allow-origin"),
            "https://pages.example");
  // A page gets to read why it was refused.
  const TestResponse keyless = TestClient(port()).Exchange(
      HttpText("POST", "/v1/completions", kStreamed, kPage));
  EXPECT_EQ(keyless.status, 401);
  EXPECT_EQ(keyless.headers.at("access-control-allow-origin"),
            "https://pages.example");
  // Another origin has no preflight, so it has to show a key.
  const TestResponse other = TestClient(port()).Exchange(
      HttpText("OPTIONS", "/v1/completions", "",
               "Origin: https://x.example\r\nAccess-Control-Request-Method: "
               "POST\r\n"));
  EXPECT_EQ(other.status, 401);
  EXPECT_FALSE(other.headers.contains("access-control-allow-origin"));
}

TEST_F(OpenAiApiTest, ABodyIsTakenAsJsonWhateverItsTypeUnlessAPageSendsIt) {
  Start();
  const std::string body = R"({"prompt":"ab"})";
  const auto tokenize = [&](const std::string& headers) {
    return TestClient(port()).Exchange(
        Cat("POST /tokenize HTTP/1.1\r\nHost: localhost\r\nContent-Length: ",
            body.size(), "\r\n", headers, "\r\n", body));
  };
  EXPECT_EQ(tokenize("").status, 200);
  EXPECT_EQ(tokenize("Content-Type: text/plain\r\n").status, 200);
  EXPECT_EQ(
      tokenize("Content-Type: application/x-www-form-urlencoded\r\n").status,
      200);
  const std::string page = "Origin: http://localhost:3000\r\n";
  EXPECT_EQ(tokenize(page + "Content-Type: text/plain\r\n").status, 415);
  EXPECT_EQ(tokenize(page).status, 415);
  EXPECT_EQ(tokenize(page + "Content-Type: application/json; charset=utf-8\r\n")
                .status,
            200);
  const TestResponse zipped = tokenize("Content-Encoding: gzip\r\n");
  EXPECT_EQ(zipped.status, 415);
  EXPECT_EQ(zipped.headers.at("accept-encoding"), "identity");
}

TEST_F(OpenAiApiTest, EveryAnswerNamesItsRequest) {
  Start();
  TestClient client(port());
  const TestResponse named = client.Exchange(
      HttpText("GET", "/v1/models", "", "X-Request-Id: bench-7\r\n"));
  EXPECT_EQ(named.headers.at("x-request-id"), "bench-7");
  // Those that bring none, or one that cannot be shown, get one of ours.
  std::set<std::string> ids;
  const auto expect_new_id = [&](const TestResponse& answer) {
    const std::string& id = answer.headers.at("x-request-id");
    EXPECT_EQ(id.size(), 32u) << id;
    EXPECT_TRUE(ids.insert(id).second) << id;
  };
  expect_new_id(client.Exchange(HttpText("GET", "/v1/models")));
  expect_new_id(client.Exchange(HttpText("GET", "/nowhere")));
  expect_new_id(
      client.Exchange(HttpText("GET", "/health", "", "X-Request-Id: a b\r\n")));
  expect_new_id(client.Exchange(HttpText("POST", "/v1/completions", "{")));
  expect_new_id(TestClient(port()).Exchange("nonsense\r\n\r\n"));
  expect_new_id(TestClient(port()).Exchange("GET / HTTP/1.1\r\n\r\n"));
  TestClient stream(port());
  ASSERT_TRUE(stream.Send(HttpText("POST", "/v1/completions", kStreamed,
                                   "X-Request-Id: stream-1\r\n")));
  EXPECT_EQ(stream.ReadHead().headers.at("x-request-id"), "stream-1");
}

TEST_F(OpenAiApiTest, WrongPathsAreToldWhatThereIs) {
  Start();
  for (const char* path : {"/v1/responses", "/v1/embeddings", "/nowhere", "/",
                           "/v1/completionsx", "/admin/layout"}) {
    const TestResponse answer = Post(path, "{}");
    EXPECT_EQ(answer.status, 404) << path;
    const Json error = Parse(answer.body)["error"];
    EXPECT_EQ(error["code"], "unknown_path");
    EXPECT_THAT(error["message"].get<std::string>(),
                AllOf(HasSubstr(path), HasSubstr("/v1/chat/completions"),
                      HasSubstr("/v1/models"), HasSubstr("admin listener")));
  }
  // A slash at the end is none too many.
  EXPECT_EQ(Get("/v1/models/").body, Get("/v1/models").body);
  EXPECT_EQ(Get("/v1/models/verse/").body, Get("/v1/models/verse").body);
  EXPECT_EQ(Get("/health/").status, 200);
}

TEST_F(OpenAiApiTest, ASilentStreamGetsComments) {
  waiting_comment_ = std::chrono::milliseconds(8);
  Start();
  TestClient client(port());
  ASSERT_TRUE(client.Send(HttpText("POST", "/v1/completions", kStreamed)));
  const auto submitted = engine_.TakeSubmitted(1);
  ASSERT_EQ(submitted.size(), 1u);
  EXPECT_EQ(client.ReadHead().status, 200);
  // Each ends its line, and begins the next.
  EXPECT_EQ(client.ReadChunk(), ": waiting\n\n:");
  EXPECT_EQ(client.ReadChunk(), " waiting\n\n:");
  engine_.Emit(TextOutput(submitted[0].id, "one "));
  std::string chunk = *client.ReadChunk();
  while (chunk == " waiting\n\n:") chunk = *client.ReadChunk();
  EXPECT_TRUE(chunk.starts_with(" on\n\ndata: {")) << chunk;
  EXPECT_THAT(chunk, HasSubstr(R"("text":"one ")"));
  // Also one that has begun and stalls.
  EXPECT_EQ(client.ReadChunk(), ": waiting\n\n:");
  engine_.Emit(LastOutput(submitted[0].id, "two"));
  chunk.clear();
  while (const auto more = client.ReadChunk()) chunk += *more;
  EXPECT_THAT(chunk, HasSubstr(" on\n\ndata: {"));
  EXPECT_TRUE(chunk.ends_with("data: [DONE]\n\n")) << chunk;
}

TEST_F(OpenAiApiTest, WholeAnswersAndStreamsThatAreNotSilentGetNoComments) {
  waiting_comment_ = std::chrono::milliseconds(1);
  Start();
  TestClient client(port());
  ASSERT_TRUE(client.Send(
      HttpText("POST", "/v1/completions", R"({"prompt":"a","max_tokens":9})")));
  const auto submitted = engine_.TakeSubmitted(1);
  ASSERT_EQ(submitted.size(), 1u);
  // A stream that was silent for longer shows that some were due.
  TestClient stream(port());
  ASSERT_TRUE(stream.Send(HttpText("POST", "/v1/completions", kStreamed)));
  EXPECT_EQ(stream.ReadHead().status, 200);
  EXPECT_TRUE(stream.ReadChunk().has_value());
  engine_.Emit(LastOutput(submitted[0].id, "one"));
  const TestResponse answer = client.ReadResponse();
  EXPECT_EQ(Parse(answer.body)["choices"][0]["text"], "one");
}

}  // namespace
}  // namespace moebius
