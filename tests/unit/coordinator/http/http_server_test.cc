// What the HTTP server serves, and how it ends.
#include <memory>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/unit/coordinator/http/http_server_fixture.h"

namespace moebius {
namespace {

using testing::HasSubstr;

TEST_F(HttpServerTest, AHandlerThatThrowsIsA500) {
  Start();
  TestClient client(port());
  const TestResponse response = client.Exchange(HttpText("GET", "/throw"));
  EXPECT_EQ(response.status, 500);
  EXPECT_THAT(response.body, HasSubstr("server_error"));
  EXPECT_EQ(client.Exchange(HttpText("GET", "/echo")).status, 200);
  // With a stream begun there is only the end of it left.
  ASSERT_TRUE(client.Send(HttpText("GET", "/throw-late")));
  EXPECT_EQ(client.ReadHead().status, 200);
  EXPECT_FALSE(client.ReadChunk().has_value());
  EXPECT_TRUE(client.AtEnd());
}

TEST_F(HttpServerTest, ConnectionsAreKeptAndAnswersAreComplete) {
  Start();
  TestClient client(port());
  for (int i = 0; i < 3; ++i) {
    const std::string body = "body " + std::to_string(i);
    const TestResponse response =
        client.Exchange(HttpText("POST", "/echo?q=1", body));
    EXPECT_EQ(response.status, 200);
    EXPECT_EQ(response.body, "POST /echo?q=1 " + body);
    EXPECT_EQ(response.headers.at("content-type"), "text/plain");
    EXPECT_TRUE(response.headers.contains("date"));
  }
  const TestResponse last =
      client.Exchange(HttpText("GET", "/echo", "", "Connection: close\r\n"));
  EXPECT_EQ(last.headers.at("connection"), "close");
  EXPECT_TRUE(client.AtEnd());
}

TEST_F(HttpServerTest, TargetsAreDecodedAndMayBeAbsolute) {
  Start();
  TestClient client(port());
  EXPECT_EQ(client.Exchange(HttpText("GET", "/a%20b%2fc%zz?x%20y")).body,
            "GET /a b/c%zz?x%20y ");
  EXPECT_EQ(client.Exchange(HttpText("GET", "http://h:1/echo?a")).body,
            "GET /echo?a ");
  EXPECT_EQ(client.Exchange(HttpText("GET", "http://h")).body, "GET /? ");
}

TEST_F(HttpServerTest, HeadHasNoBody) {
  Start();
  TestClient client(port());
  ASSERT_TRUE(client.Send(HttpText("HEAD", "/big")));
  const TestResponse head = client.ReadHead();
  EXPECT_EQ(head.status, 200);
  EXPECT_EQ(head.headers.at("content-length"), std::to_string(1 << 20));
  EXPECT_EQ(client.Exchange(HttpText("GET", "/echo")).body, "GET /echo? ");
}

TEST_F(HttpServerTest, Http10ClosesAfterTheAnswer) {
  Start();
  TestClient client(port());
  EXPECT_EQ(client.Exchange("GET /echo HTTP/1.0\r\n\r\n").body, "GET /echo? ");
  EXPECT_TRUE(client.AtEnd());
  TestClient streaming(port());
  ASSERT_TRUE(streaming.Send("GET /stream HTTP/1.0\r\n\r\n"));
  auto exchange = handler_.TakeExchange();
  ASSERT_NE(exchange, nullptr);
  exchange->Post([exchange] {
    exchange->Write("data: x\n\n");
    exchange->FinishStream();
  });
  const TestResponse response = streaming.ReadResponse();
  EXPECT_EQ(response.body, "data: x\n\n");
  EXPECT_FALSE(response.headers.contains("transfer-encoding"));
}

TEST_F(HttpServerTest, ABodyIsAskedForWith100Continue) {
  Start();
  TestClient client(port());
  ASSERT_TRUE(client.Send(
      "POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nExpect: "
      "100-continue\r\n\r\n"));
  EXPECT_EQ(client.ReadHead().status, 100);
  EXPECT_EQ(client.Exchange("abc").body, "POST /echo? abc");
}

TEST_F(HttpServerTest, PipelinedRequestsAreAnsweredInOrder) {
  Start();
  TestClient client(port());
  constexpr int kRequests = 200;
  std::string text;
  for (int i = 0; i < kRequests; ++i) {
    text += HttpText("POST", "/echo", std::to_string(i));
  }
  ASSERT_TRUE(client.Send(text));
  for (int i = 0; i < kRequests; ++i) {
    EXPECT_EQ(client.ReadResponse().body, "POST /echo? " + std::to_string(i));
  }
}

TEST_F(HttpServerTest, ARequestBehindAStreamWaitsForItsEnd) {
  Start();
  TestClient client(port());
  ASSERT_TRUE(
      client.Send(HttpText("GET", "/stream") + HttpText("GET", "/echo")));
  auto exchange = handler_.TakeExchange();
  ASSERT_NE(exchange, nullptr);
  exchange->Post([exchange] {
    exchange->Write("data: 1\n\n");
    exchange->Flush();
    exchange->Write("data: 2\n\n");
    exchange->FinishStream();
  });
  EXPECT_EQ(client.ReadResponse().body, "data: 1\n\ndata: 2\n\n");
  EXPECT_EQ(client.ReadResponse().body, "GET /echo? ");
}

// Answers that the client does not read must not pile up.
TEST_F(HttpServerTest, PipelinedAnswersWaitForTheReader) {
  options_.max_stream_buffer_bytes = 64 << 10;
  options_.socket_send_buffer_bytes = 64 << 10;
  Start();
  TestClient client(port());
  constexpr int kRequests = 6;
  std::string text;
  for (int i = 0; i < kRequests; ++i) text += HttpText("GET", "/big");
  ASSERT_TRUE(client.Send(text));
  for (int i = 0; i < kRequests; ++i) {
    EXPECT_EQ(client.ReadResponse().body.size(), size_t{1} << 20);
  }
}

TEST_F(HttpServerTest, AClientThatLeavesIsNoticedWhileNothingIsWritten) {
  Start();
  TestClient waiting(port()), streaming(port());
  ASSERT_TRUE(waiting.Send(HttpText("GET", "/wait")));
  auto exchange = handler_.TakeExchange();
  ASSERT_NE(exchange, nullptr);
  waiting.Close();
  EXPECT_TRUE(handler_.WaitForClosed(1));
  ASSERT_TRUE(streaming.Send(HttpText("GET", "/stream")));
  ASSERT_NE(handler_.TakeExchange(), nullptr);
  streaming.CloseSendingHalf();
  EXPECT_TRUE(handler_.WaitForClosed(2));
  // Calls after that do nothing.
  std::mutex mutex;
  std::condition_variable changed;
  bool done = false;
  exchange->Post([&, exchange] {
    EXPECT_FALSE(exchange->open());
    exchange->Write("late");
    exchange->Flush();
    exchange->Respond({});
    std::lock_guard lock(mutex);
    done = true;
    changed.notify_all();
  });
  std::unique_lock lock(mutex);
  EXPECT_TRUE(
      changed.wait_for(lock, std::chrono::seconds(30), [&] { return done; }));
}

TEST_F(HttpServerTest, AReaderThatIsTooSlowIsCutOff) {
  options_.max_stream_buffer_bytes = 32 << 10;
  options_.socket_send_buffer_bytes = 8 << 10;
  Start();
  TestClient slow(port(), /*receive_bytes=*/4096);
  ASSERT_TRUE(slow.Send(HttpText("GET", "/stream")));
  auto exchange = handler_.TakeExchange();
  ASSERT_NE(exchange, nullptr);
  const auto event = std::make_shared<const std::string>(
      "data: " + std::string(8 << 10, 'x') + "\n\n");
  for (int i = 0; i < 1000; ++i) {
    exchange->Post([exchange, event] {
      exchange->Write(*event);
      exchange->Flush();
    });
  }
  EXPECT_TRUE(handler_.WaitForClosed(1));
  ASSERT_TRUE(WaitForConnections(0));
}

TEST_F(HttpServerTest, AReaderThatTakesNothingIsCutOffInTime) {
  options_.write_timeout_ms = 50;
  options_.socket_send_buffer_bytes = 8 << 10;
  Start();
  TestClient slow(port(), /*receive_bytes=*/4096);
  ASSERT_TRUE(slow.Send(HttpText("GET", "/stream")));
  auto exchange = handler_.TakeExchange();
  ASSERT_NE(exchange, nullptr);
  exchange->Post([exchange, event = std::string(900 << 10, 'x')] {
    exchange->Write(event);
    exchange->Flush();
  });
  EXPECT_TRUE(handler_.WaitForClosed(1));
}

TEST_F(HttpServerTest, StopClosesStreamsAndTellsTheirHandlers) {
  Start();
  TestClient client(port()), idle(port());
  ASSERT_EQ(idle.Exchange(HttpText("GET", "/echo")).status, 200);
  ASSERT_TRUE(client.Send(HttpText("GET", "/stream")));
  auto exchange = handler_.TakeExchange();
  ASSERT_NE(exchange, nullptr);
  server_->Stop();
  EXPECT_TRUE(handler_.WaitForClosed(1));
  EXPECT_EQ(server_->num_connections(), 0);
  EXPECT_EQ(client.ReadHead().status, 200);
  EXPECT_FALSE(client.ReadChunk().has_value());
  EXPECT_TRUE(idle.AtEnd());
  EXPECT_FALSE(TestClient(port()).connected());
  threads_.Stop();
  EXPECT_FALSE(exchange->Post([] {}));
}

TEST_F(HttpServerTest, StopAcceptingLetsAnswersFinish) {
  Start();
  TestClient busy(port()), idle(port());
  ASSERT_EQ(idle.Exchange(HttpText("GET", "/echo")).status, 200);
  ASSERT_TRUE(busy.Send(HttpText("GET", "/wait")));
  auto exchange = handler_.TakeExchange();
  ASSERT_NE(exchange, nullptr);
  server_->StopAccepting();
  EXPECT_TRUE(idle.AtEnd());
  exchange->Post([exchange] {
    HttpResponse response;
    response.body = "bye";
    exchange->Respond(response);
  });
  const TestResponse response = busy.ReadResponse();
  EXPECT_EQ(response.body, "bye");
  EXPECT_EQ(response.headers.at("connection"), "close");
  busy.Close();
  EXPECT_TRUE(WaitForConnections(0));
}

}  // namespace
}  // namespace moebius
