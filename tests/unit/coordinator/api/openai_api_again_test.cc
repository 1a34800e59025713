// Requests that come again: by their idempotency key, from their last event.
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_split.h"
#include "common/base/cat.h"
#include "coordinator/api/event_id.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/unit/coordinator/api/openai_api_fixture.h"

namespace moebius {
namespace {

std::string WithKey(const std::string& body, const std::string& headers) {
  std::string text = HttpText("POST", "/v1/completions", body);
  return text.insert(text.find("\r\n") + 2, headers);
}

// Of an event with which the client has `tokens` of the one choice.
std::string IdOf(const Json& answer_id, int64_t tokens) {
  std::string id;
  AppendEventId(AnswerTag(answer_id.get<std::string>()), {tokens}, &id);
  return id;
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
  const std::string first_id = client.last_id();
  EXPECT_EQ(first_id, IdOf(first["id"], 1));

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
  ASSERT_TRUE(third.Send(WithKey(
      kStreamed,
      Cat("Idempotency-Key: k1\r\nLast-Event-ID: ", first_id, "\r\n"))));
  auto [same, attach_third] = engine_.TakeAttached();
  attach_third(std::vector<Output>{TextOutput(id, "one ")});
  EXPECT_EQ(third.ReadHead().status, 200);

  engine_.Emit(LastOutput(id, "two"));
  for (TestClient* one : {&client, &other, &third}) {
    EXPECT_EQ(Parse(*one->ReadEvent())["choices"][0]["text"], "two");
    EXPECT_EQ(one->last_id(), IdOf(first["id"], 2));
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
        std::string("Idempotency-Key: k1\r\nLast-Event-ID: x\r\n"),
        std::string("Idempotency-Key: k1\r\nLast-Event-ID: -1\r\n"),
        std::string("Idempotency-Key: k1\r\nLast-Event-ID: 99999999999\r\n")}) {
    EXPECT_EQ(TestClient(port()).Exchange(WithKey(kStreamed, headers)).status,
              400)
        << headers;
  }
  EXPECT_EQ(engine_.num_submitted(), 0u);
}

TEST_F(OpenAiApiTest, WithoutAKeyAStreamHasNoIdsAndNoLastEvent) {
  Start();
  TestClient client(port());
  ASSERT_TRUE(client.Send(WithKey(kStreamed, "Last-Event-ID: 1\r\n")));
  const auto submitted = engine_.TakeSubmitted(1);
  ASSERT_EQ(submitted.size(), 1u);
  engine_.Emit(TextOutput(submitted[0].id, "one "));
  engine_.Emit(LastOutput(submitted[0].id, "two"));
  const TestResponse answer = client.ReadResponse();
  EXPECT_EQ(answer.status, 200);
  // The stream begins at its beginning, and every event is one line of data.
  int events = 0;
  for (absl::string_view event :
       absl::StrSplit(answer.body, "\n\n", absl::SkipEmpty())) {
    EXPECT_TRUE(absl::StartsWith(event, "data: ")) << event;
    EXPECT_EQ(event.find('\n'), event.npos) << event;
    ++events;
  }
  EXPECT_EQ(events, 3) << answer.body;
  EXPECT_THAT(answer.body, testing::HasSubstr(R"("text":"one ")"));
}

TEST_F(OpenAiApiTest, TheRestOfAnAnswerThatIsNotHereIsA404) {
  Start();
  const auto resume = [&](const std::string& id) {
    return TestClient(port()).Exchange(WithKey(
        kStreamed, Cat("Idempotency-Key: k1\r\nLast-Event-ID: ", id, "\r\n")));
  };
  const auto expect_404 = [&](const TestResponse& answer) {
    EXPECT_EQ(answer.status, 404);
    EXPECT_EQ(Parse(answer.body)["error"]["code"], "answer_not_resumable");
  };
  expect_404(resume("0000002a.1"));  // never known
  expect_404(resume("17"));
  EXPECT_EQ(engine_.num_submitted(), 0u);
  // The same key again, from the beginning: another answer, whose rest is not
  // that of the first.
  TestClient anew(port());
  ASSERT_TRUE(anew.Send(WithKey(kStreamed, "Idempotency-Key: k1\r\n")));
  const auto submitted = engine_.TakeSubmitted(1);
  ASSERT_EQ(submitted.size(), 1u);
  engine_.Emit(TextOutput(submitted[0].id, "one "));
  EXPECT_EQ(anew.ReadHead().status, 200);
  EXPECT_TRUE(anew.ReadEvent().has_value());
  expect_404(resume("0000002a.1"));
  // Forgotten.
  const std::string id = anew.last_id();
  api_->calls().OnForgotten({submitted[0].id});
  expect_404(resume(id));
  EXPECT_EQ(engine_.num_submitted(), 0u);
}

TEST_F(OpenAiApiTest, AnAnswerThatIsDroppedMeanwhileIsA404OrToBeSentAgain) {
  Start();
  TestClient first(port());
  ASSERT_TRUE(first.Send(WithKey(kStreamed, "Idempotency-Key: k1\r\n")));
  const auto submitted = engine_.TakeSubmitted(1);
  ASSERT_EQ(submitted.size(), 1u);
  engine_.Emit(TextOutput(submitted[0].id, "one "));
  EXPECT_EQ(first.ReadHead().status, 200);
  EXPECT_TRUE(first.ReadEvent().has_value());
  TestClient rest(port()), whole(port());
  ASSERT_TRUE(rest.Send(WithKey(
      kStreamed,
      Cat("Idempotency-Key: k1\r\nLast-Event-ID: ", first.last_id(), "\r\n"))));
  engine_.TakeAttached().second(absl::NotFoundError("gone"));
  const TestResponse of_rest = rest.ReadResponse();
  EXPECT_EQ(of_rest.status, 404);
  EXPECT_EQ(Parse(of_rest.body)["error"]["code"], "answer_not_resumable");
  ASSERT_TRUE(whole.Send(WithKey(kStreamed, "Idempotency-Key: k1\r\n")));
  engine_.TakeAttached().second(absl::NotFoundError("gone"));
  const TestResponse of_whole = whole.ReadResponse();
  EXPECT_EQ(of_whole.status, 503);
  EXPECT_TRUE(of_whole.headers.contains("retry-after"));
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

}  // namespace
}  // namespace moebius
