// Clients that leave or are slow, large bodies, many streams: nobody is held
// up, and what waits is bounded.
#include <latch>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/unit/coordinator/api/openai_api_fixture.h"

namespace moebius {
namespace {

using testing::HasSubstr;

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
