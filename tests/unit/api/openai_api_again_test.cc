// Requests that come again: by their idempotency key, from their last event.
#include <string>
#include <utility>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/unit/api/openai_api_fixture.h"

namespace moebius {
namespace {

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
  EXPECT_FALSE(api_->calls().Restore(RequestId{70}, 1, true, "nonsense").ok());
  ASSERT_THAT(api_->calls().Restore(RequestId{71}, 1, true, context), IsOk());
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
  api_->calls().OnForgotten({RequestId{71}});
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

}  // namespace
}  // namespace moebius
