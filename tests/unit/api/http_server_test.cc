// The HTTP server alone, over loopback sockets.
#include "coordinator/api/http_server.h"

#include <atomic>
#include <condition_variable>
#include <functional>
#include <map>
#include <mutex>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/status_matchers.h"
#include "tests/unit/api/test_client.h"

namespace moebius {
namespace {

using testing::HasSubstr;
using testing::StartsWith;

// /echo answers with method, path, query and body; /big with a megabyte;
// /stream opens a stream and hands it to the test; /wait is handed to the test
// unanswered; /refused is refused; /throw throws, /throw-late after it has
// begun a stream.
class TestHandler final : public HttpHandler {
 public:
  std::optional<HttpResponse> Refuse(const HttpRequest& head) override {
    EXPECT_EQ(head.body, "");
    if (head.path != "/refused") return std::nullopt;
    HttpResponse response;
    response.status = 401;
    response.headers.emplace_back("WWW-Authenticate", "Bearer");
    response.body = "{}";
    return response;
  }

  void Handle(std::shared_ptr<HttpExchange> exchange) override {
    const HttpRequest& request = exchange->request();
    if (request.path == "/throw-late") exchange->StartStream({});
    if (request.path.starts_with("/throw")) throw std::runtime_error("oh no");
    if (request.path == "/stream" || request.path == "/wait") {
      exchange->OnClosed([this] {
        std::lock_guard lock(mutex_);
        ++num_closed_;
        changed_.notify_all();
      });
      if (request.path == "/stream") {
        HttpResponse head;
        head.content_type = "text/event-stream";
        exchange->StartStream(head);
      }
      std::lock_guard lock(mutex_);
      exchanges_.push_back(std::move(exchange));
      changed_.notify_all();
      return;
    }
    HttpResponse response;
    response.content_type = "text/plain";
    response.body = request.path == "/big"
                        ? std::string(1 << 20, 'x')
                        : request.method + " " + request.path + "?" +
                              request.query + " " + request.body;
    exchange->Respond(std::move(response));
  }

  std::shared_ptr<HttpExchange> TakeExchange() {
    std::unique_lock lock(mutex_);
    if (!changed_.wait_for(lock, std::chrono::seconds(30),
                           [&] { return !exchanges_.empty(); })) {
      return nullptr;
    }
    auto out = exchanges_.front();
    exchanges_.erase(exchanges_.begin());
    return out;
  }
  bool WaitForClosed(int count) {
    std::unique_lock lock(mutex_);
    return changed_.wait_for(lock, std::chrono::seconds(30),
                             [&] { return num_closed_ >= count; });
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<std::shared_ptr<HttpExchange>> exchanges_;
  int num_closed_ = 0;
};

class HttpServerTest : public testing::Test {
 protected:
  ~HttpServerTest() override {
    if (server_) server_->Stop();
    threads_.Stop();
  }

  void Start() {
    auto server = HttpServer::Start(options_, threads_, handler_);
    ASSERT_THAT(server, IsOk());
    server_ = std::move(*server);
  }
  int port() const { return server_->port(); }

  // Waits until the server holds `count` connections.
  bool WaitForConnections(int count) {
    for (int i = 0; i < 3000 && server_->num_connections() != count; ++i) {
      // A round through the threads is time for what they have to do.
      for (int t = 0; t < threads_.size(); ++t) {
        std::mutex mutex;
        std::condition_variable changed;
        bool done = false;
        threads_.Post(t, [&] {
          std::lock_guard lock(mutex);
          done = true;
          changed.notify_all();
        });
        std::unique_lock lock(mutex);
        changed.wait(lock, [&] { return done; });
      }
      usleep(1000);
    }
    return server_->num_connections() == count;
  }

  HttpServerOptions options_;
  TestHandler handler_;
  IoThreads threads_{2, "test-http"};
  std::unique_ptr<HttpServer> server_;
};

TEST_F(HttpServerTest, AnAddressThatCannotBeBoundIsAnError) {
  options_.listen.host = "no such host";
  EXPECT_THAT(HttpServer::Start(options_, threads_, handler_),
              StatusIs(absl::StatusCode::kInvalidArgument,
                       HasSubstr("\"no such host\"")));
  options_.listen = {"127.0.0.1", 70000};
  EXPECT_THAT(HttpServer::Start(options_, threads_, handler_),
              StatusIs(absl::StatusCode::kInvalidArgument));
  options_.listen = {"127.0.0.1", 0};
  Start();
  options_.listen.port = port();
  EXPECT_THAT(HttpServer::Start(options_, threads_, handler_),
              StatusIs(absl::StatusCode::kUnavailable,
                       HasSubstr("cannot listen on 127.0.0.1")));
}

TEST_F(HttpServerTest, MalformedRequestsAreRefusedAndTheConnectionEnds) {
  Start();
  const struct {
    std::string text;
    int status;
  } kCases[] = {
      {"nonsense\r\n\r\n", 400},
      {"GET\r\n\r\n", 400},
      {"GET /echo HTTP/3.7\r\n\r\n", 505},
      {"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505},
      {"GET /echo HTTP/1.1\r\nbad header\r\n\r\n", 400},
      {"GET /echo HTTP/1.1\r\n: x\r\n\r\n", 400},
      {std::string("GET /e\0cho HTTP/1.1\r\n\r\n", 24), 400},
      {"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400},
      {"POST /echo HTTP/1.1\r\nContent-Length: x\r\n\r\n", 400},
      {"POST /echo HTTP/1.1\r\nContent-Length: -1\r\n\r\n", 400},
      {"POST /echo HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
       400},
      {"POST /echo HTTP/1.1\r\nContent-Length: 5\r\n"
       "Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
       400},
      {"POST /echo HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", 400},
      {"POST /echo HTTP/1.1\r\nContent-Length: 99999999999999999999\r\n\r\n",
       400},
      {"POST /echo HTTP/1.1\r\nContent-Length: 1, 2\r\n\r\n", 400},
      {"POST /echo HTTP/1.1\r\nContent-Length: +1\r\n\r\nx", 400},
      {"POST /echo HTTP/1.1\r\nContent-Length: 0x1\r\n\r\nx", 400},
      {"POST /echo HTTP/1.1\r\nContent-Length: \r\n\r\n", 400},
      {"POST /echo HTTP/1.1\r\nTransfer-Encoding: chunked\r\n"
       "Content-Length: 5\r\n\r\n0\r\n\r\n",
       400},
      {"POST /echo HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n"
       "-1\r\nx\r\n",
       400},
      {"POST /echo HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n"
       "fffffffffffffffff\r\nx\r\n",
       400},
      {"POST /echo HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n"
       "1\nx\r\n0\r\n\r\n",
       400},
      {"POST /echo HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n"
       "1\r\nxx\r\n0\r\n\r\n",
       400},
      {std::string("GET /echo HTTP/1.1\r\nX: a\0b\r\n\r\n", 31), 400},
      {std::string("GET /echo HTTP/1.1\r\nX\0: ab\r\n\r\n", 31), 400},
      {"GET /echo HTTP/1.1\r\nX: a\rb\r\n\r\n", 400},
      {"GET /echo HTTP/1.1\r\nContent-Length : 0\r\n\r\n", 400},
      {"GET /echo HTTP/1.1\nHost: x\n\n\r\n\r\n", 505},
  };
  for (const auto& c : kCases) {
    TestClient client(port());
    const TestResponse response = client.Exchange(c.text);
    EXPECT_EQ(response.status, c.status) << c.text;
    EXPECT_THAT(response.body, StartsWith(R"({"error":{"message":)")) << c.text;
    EXPECT_TRUE(client.AtEnd()) << c.text;
  }
  EXPECT_EQ(TestClient(port()).Exchange(HttpText("GET", "/echo")).status, 200);
}

// A coding that we passed over would leave the body to be read as requests.
TEST_F(HttpServerTest, AnotherCodingThanChunkedIsRefused) {
  Start();
  const std::string hidden = "GET /echo?hidden HTTP/1.1\r\n\r\n";
  for (const std::string& headers : {
           std::string("Transfer-Encoding: gzip\r\n"),
           std::string("Transfer-Encoding: identity\r\n"),
           std::string("Transfer-Encoding: xchunked\r\n"),
           std::string("Transfer-Encoding: chunked, identity\r\n"),
           std::string("Transfer-Encoding: gzip, chunked\r\n"),
           std::string("Transfer-Encoding: gzip\r\n"
                       "Transfer-Encoding: chunked\r\n"),
           std::string("Transfer-Encoding: chunked\r\n"
                       "Transfer-Encoding: chunked\r\n"),
           std::string("Transfer-Encoding: \x0b"
                       "chunked\r\n"),
           std::string("Transfer-Encoding: \"chunked\"\r\n"),
           std::string("Transfer-Encoding:\r\n"),
           std::string("Transfer-Encoding: gzip\r\nContent-Length: 5\r\n"),
           std::string("Content-Length: 5\r\nTransfer-Encoding: gzip\r\n"),
       }) {
    TestClient client(port());
    const TestResponse response =
        client.Exchange("POST /echo HTTP/1.1\r\n" + headers + "\r\n" + hidden);
    EXPECT_EQ(response.status, 400) << headers;
    EXPECT_TRUE(client.AtEnd()) << headers;
  }
  TestClient old(port());
  EXPECT_EQ(old.Exchange("POST /echo HTTP/1.0\r\nTransfer-Encoding: "
                         "chunked\r\n\r\n0\r\n\r\n")
                .status,
            400);
  TestClient client(port());
  EXPECT_EQ(client
                .Exchange("POST /echo HTTP/1.1\r\nTransfer-Encoding: "
                          "Chunked\r\n\r\n2;a=b\r\nhi\r\n0\r\n\r\n")
                .body,
            "POST /echo? hi");
}

// Beast takes them of any length.
TEST_F(HttpServerTest, ChunkExtensionsAndTrailersAreBounded) {
  Start();
  const std::string head =
      "POST /echo HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n";
  for (const char* begin : {"1;x=", "0\r\nX: "}) {
    TestClient client(port());
    ASSERT_TRUE(client.Send(head + begin));
    // More than the sockets hold: somebody has to take it.
    client.Send(std::string(20 << 20, 'a'));
    EXPECT_EQ(client.ReadResponse().status, 431) << begin;
    EXPECT_TRUE(client.AtEnd()) << begin;
  }
}

TEST_F(HttpServerTest, TrailersAreNotHeaders) {
  Start();
  TestClient client(port());
  ASSERT_TRUE(
      client.Send("POST /wait HTTP/1.1\r\nTransfer-Encoding: chunked\r\n"
                  "X-A: head\r\n\r\n0\r\nX-B: trailer\r\n\r\n"));
  const auto exchange = handler_.TakeExchange();
  ASSERT_NE(exchange, nullptr);
  EXPECT_NE(exchange->request().Header("x-a"), nullptr);
  EXPECT_EQ(exchange->request().Header("x-b"), nullptr);
}

TEST_F(HttpServerTest, IncompleteBodiesAreBoundedOverAllConnections) {
  options_.max_incomplete_bytes = 1 << 20;
  Start();
  const std::string head =
      "POST /echo HTTP/1.1\r\nContent-Length: 4000000\r\n\r\n";
  TestClient holder(port());
  ASSERT_TRUE(holder.Send(head + std::string(900 << 10, 'x')));
  // Small ones do not count, whatever is held.
  const std::string small(kSmallRequestBytes - 1000, 'x');
  EXPECT_EQ(
      TestClient(port()).Exchange(HttpText("POST", "/echo", small)).status,
      200);
  // Once all of the first has been taken in, a second is too much.
  TestResponse response;
  for (int i = 0; i < 1000 && response.status != 503; ++i) {
    TestClient client(port());
    response =
        client.Exchange(HttpText("POST", "/echo", std::string(300 << 10, 'x')));
  }
  EXPECT_EQ(response.status, 503);
  EXPECT_THAT(response.body, HasSubstr("too_many_large_requests"));
  holder.Close();
  ASSERT_TRUE(WaitForConnections(0));
  EXPECT_EQ(
      TestClient(port())
          .Exchange(HttpText("POST", "/echo", std::string(900 << 10, 'x')))
          .status,
      200);
}

TEST_F(HttpServerTest, RefusedRequestsAreAnsweredBeforeTheirBodies) {
  Start();
  TestClient asking(port());
  // No "100 Continue" comes: the body need not be sent.
  EXPECT_EQ(asking
                .Exchange("POST /refused HTTP/1.1\r\nContent-Length: 3\r\n"
                          "Expect: 100-continue\r\n\r\n")
                .status,
            401);
  EXPECT_TRUE(asking.AtEnd());
  // A client that sends it nevertheless gets to see the answer.
  TestClient sending(port());
  ASSERT_TRUE(
      sending.Send(HttpText("POST", "/refused", std::string(3 << 20, 'x'))));
  const TestResponse response = sending.ReadResponse();
  EXPECT_EQ(response.status, 401);
  EXPECT_EQ(response.headers.at("connection"), "close");
  EXPECT_EQ(response.headers.at("www-authenticate"), "Bearer");
  EXPECT_TRUE(sending.AtEnd());
  // What is pipelined behind it is not served.
  TestClient pipelining(port());
  ASSERT_TRUE(
      pipelining.Send(HttpText("GET", "/refused") + HttpText("GET", "/echo")));
  EXPECT_EQ(pipelining.ReadResponse().status, 401);
  EXPECT_TRUE(pipelining.AtEnd());
  TestClient head(port());
  ASSERT_TRUE(head.Send(HttpText("HEAD", "/refused")));
  EXPECT_EQ(head.ReadHead().status, 401);
  EXPECT_TRUE(head.AtEnd());
}

TEST_F(HttpServerTest, BodiesOverTheLimitAreA413) {
  options_.max_body_bytes = 1000;
  Start();
  TestClient declared(port());
  const TestResponse early =
      declared.Exchange("POST /echo HTTP/1.1\r\nContent-Length: 1001\r\n\r\n");
  EXPECT_EQ(early.status, 413);
  EXPECT_THAT(early.body, HasSubstr("larger than 1000 bytes"));
  TestClient chunked(port());
  EXPECT_EQ(chunked
                .Exchange("POST /echo HTTP/1.1\r\nTransfer-Encoding: "
                          "chunked\r\n\r\n3e9\r\n" +
                          std::string(1001, 'x') + "\r\n0\r\n\r\n")
                .status,
            413);
  EXPECT_EQ(TestClient(port())
                .Exchange(HttpText("POST", "/echo", std::string(1000, 'x')))
                .status,
            200);
}

TEST_F(HttpServerTest, AClientThatIsStillSendingSeesThe413) {
  Start();
  TestClient client(port());
  const std::string body((4 << 20) + 1, 'x');
  EXPECT_TRUE(client.Send(HttpText("POST", "/echo", body)));
  const TestResponse response = client.ReadResponse();
  EXPECT_EQ(response.status, 413);
  EXPECT_THAT(response.body, HasSubstr("request_too_large"));
  EXPECT_TRUE(client.AtEnd());
}

TEST_F(HttpServerTest, HeadersOverTheLimitAreA431) {
  Start();
  TestClient client(port());
  const TestResponse response = client.Exchange(HttpText(
      "GET", "/echo", "", "X-Long: " + std::string(17 << 10, 'a') + "\r\n"));
  EXPECT_EQ(response.status, 431);
  TestClient endless(port());
  EXPECT_EQ(endless.Exchange("GET /" + std::string(20 << 10, 'a')).status, 431);
  EXPECT_EQ(
      TestClient(port())
          .Exchange(HttpText("GET", "/echo", "",
                             "X-Long: " + std::string(15 << 10, 'a') + "\r\n"))
          .status,
      200);
}

TEST_F(HttpServerTest, SlowRequestsTimeOut) {
  options_.header_timeout_ms = 50;
  options_.body_timeout_ms = 60;
  Start();
  TestClient header(port()), body(port()), silent(port());
  EXPECT_TRUE(header.Send("GET /echo HT"));
  EXPECT_TRUE(body.Send("POST /echo HTTP/1.1\r\nContent-Length: 5\r\n\r\nab"));
  EXPECT_EQ(header.ReadResponse().status, 408);
  EXPECT_EQ(body.ReadResponse().status, 408);
  EXPECT_TRUE(silent.AtEnd());
}

TEST_F(HttpServerTest, IdleConnectionsAreClosed) {
  options_.idle_timeout_ms = 50;
  Start();
  TestClient client(port());
  EXPECT_EQ(client.Exchange(HttpText("GET", "/echo")).status, 200);
  EXPECT_TRUE(client.AtEnd());
}

TEST_F(HttpServerTest, ConnectionsBeyondTheLimitAreTurnedAway) {
  options_.max_connections = 2;
  Start();
  TestClient first(port()), second(port());
  EXPECT_EQ(first.Exchange(HttpText("GET", "/echo")).status, 200);
  EXPECT_EQ(second.Exchange(HttpText("GET", "/echo")).status, 200);
  TestClient third(port());
  const TestResponse response = third.ReadResponse();
  EXPECT_EQ(response.status, 503);
  EXPECT_THAT(response.body, HasSubstr("too many connections"));
  first.Close();
  ASSERT_TRUE(WaitForConnections(1));
  EXPECT_EQ(TestClient(port()).Exchange(HttpText("GET", "/echo")).status, 200);
}

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
  ASSERT_TRUE(
      client.Send("POST /echo HTTP/1.1\r\nContent-Length: 3\r\nExpect: "
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
