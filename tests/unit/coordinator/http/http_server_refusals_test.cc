// What the HTTP server refuses, and what it bounds.
#include <poll.h>
#include <sys/resource.h>

#include <ctime>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "common/base/descriptors.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/unit/coordinator/http/http_server_fixture.h"

namespace moebius {
namespace {

// While it exists this process has no more descriptors than it has let go.
class DescriptorShortage {
 public:
  DescriptorShortage() {
    getrlimit(RLIMIT_NOFILE, &before_);
    const rlimit few{static_cast<rlim_t>(NumOpenDescriptors() + 16),
                     before_.rlim_max};
    EXPECT_EQ(setrlimit(RLIMIT_NOFILE, &few), 0);
    for (int fd = dup(0); fd >= 0; fd = dup(0)) taken_.push_back(fd);
  }
  ~DescriptorShortage() {
    while (!taken_.empty()) LetGo();
    setrlimit(RLIMIT_NOFILE, &before_);
  }
  DescriptorShortage(const DescriptorShortage&) = delete;

  void LetGo() {
    close(taken_.back());
    taken_.pop_back();
  }

 private:
  rlimit before_{};
  std::vector<int> taken_;
};

using testing::HasSubstr;
using testing::StartsWith;

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
      {"GET /echo HTTP/1.1\r\nHost: x\r\nbad header\r\n\r\n", 400},
      {"GET /echo HTTP/1.1\r\nHost: x\r\n: x\r\n\r\n", 400},
      {std::string("GET /e\0cho HTTP/1.1\r\nHost: x\r\n\r\n", 33), 400},
      {"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400},
      {"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: x\r\n\r\n", 400},
      {"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n", 400},
      {"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: "
       "2\r\n\r\n",
       400},
      {"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n"
       "Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
       400},
      {"POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: "
       "chunked\r\n\r\nzz\r\n",
       400},
      {"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: "
       "99999999999999999999\r\n\r\n",
       400},
      {"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 1, 2\r\n\r\n", 400},
      {"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: +1\r\n\r\nx", 400},
      {"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 0x1\r\n\r\nx", 400},
      {"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: \r\n\r\n", 400},
      {"POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n"
       "Content-Length: 5\r\n\r\n0\r\n\r\n",
       400},
      {"POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
       "-1\r\nx\r\n",
       400},
      {"POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
       "fffffffffffffffff\r\nx\r\n",
       400},
      {"POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
       "1\nx\r\n0\r\n\r\n",
       400},
      {"POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
       "1\r\nxx\r\n0\r\n\r\n",
       400},
      {std::string("GET /echo HTTP/1.1\r\nHost: x\r\nX: a\0b\r\n\r\n", 40),
       400},
      {std::string("GET /echo HTTP/1.1\r\nHost: x\r\nX\0: ab\r\n\r\n", 40),
       400},
      {"GET /echo HTTP/1.1\r\nHost: x\r\nX: a\rb\r\n\r\n", 400},
      {"GET /echo HTTP/1.1\r\nHost: x\r\nContent-Length : 0\r\n\r\n", 400},
      {"GET /echo HTTP/1.1\nHost: x\n\n", 400},
      {"GET /echo HTTP/1.1\nHost: x\n\n\r\n\r\n", 400},
      {"GET /echo HTTP/1.1\r\nHost: x\nX: a\r\n\r\n", 400},
      {"GET /echo HTTP/1.1\r\nHost: x\r\n\n", 400},
      {"\nGET /echo HTTP/1.1\r\nHost: x\r\n\r\n", 400},
      {"GET /echo HTTP/1.1\r\n\r\n", 400},
      {"GET /echo HTTP/1.1\r\nHost: x\r\nHost: x\r\n\r\n", 400},
      {"GET /echo HTTP/1.1\r\nHost: a b\r\n\r\n", 400},
      {"GET /echo HTTP/1.1\r\nHost: a/b\r\n\r\n", 400},
      {"GET /echo HTTP/1.0\r\nHost: x\r\nHost: y\r\n\r\n", 400},
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

TEST_F(HttpServerTest, EmptyLinesBeforeARequestAreSkippedUpToABound) {
  Start();
  TestClient client(port());
  EXPECT_EQ(client.Exchange("\r\n\r\n" + HttpText("GET", "/echo")).status, 200);
  // Behind a body whose sender ends it with one, cut anywhere.
  ASSERT_TRUE(client.Send(HttpText("POST", "/echo", "x") + "\r"));
  EXPECT_EQ(client.ReadResponse().body, "POST /echo? x");
  ASSERT_TRUE(client.Send("\n"));
  EXPECT_EQ(client.Exchange(HttpText("GET", "/echo")).status, 200);
  std::string many;
  for (int i = 0; i < 17; ++i) many += "\r\n";
  EXPECT_EQ(client.Exchange(many).status, 400);
  EXPECT_TRUE(client.AtEnd());
}

TEST_F(HttpServerTest, AChunksLineThatEndsWithLineFeedAloneIsRefused) {
  Start();
  for (const char* begin : {"1\n", "1\r\nx\r\n0\n", "0\r\nX: a\n"}) {
    TestClient client(port());
    EXPECT_EQ(client
                  .Exchange("POST /echo HTTP/1.1\r\nHost: x\r\n"
                            "Transfer-Encoding: chunked\r\n\r\n" +
                            std::string(begin))
                  .status,
              400)
        << begin;
  }
}

// A coding that we passed over would leave the body to be read as requests.
TEST_F(HttpServerTest, AnotherCodingThanChunkedIsRefused) {
  Start();
  const std::string hidden = "GET /echo?hidden HTTP/1.1\r\nHost: x\r\n\r\n";
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
    const TestResponse response = client.Exchange(
        "POST /echo HTTP/1.1\r\nHost: x\r\n" + headers + "\r\n" + hidden);
    EXPECT_EQ(response.status, 400) << headers;
    EXPECT_TRUE(client.AtEnd()) << headers;
  }
  TestClient old(port());
  EXPECT_EQ(old.Exchange("POST /echo HTTP/1.0\r\nTransfer-Encoding: "
                         "chunked\r\n\r\n0\r\n\r\n")
                .status,
            400);
  TestClient client(port());
  EXPECT_EQ(
      client
          .Exchange("POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: "
                    "Chunked\r\n\r\n2;a=b\r\nhi\r\n0\r\n\r\n")
          .body,
      "POST /echo? hi");
}

// Beast takes them of any length.
TEST_F(HttpServerTest, ChunkExtensionsAndTrailersAreBounded) {
  Start();
  const std::string head =
      "POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n";
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
  ASSERT_TRUE(client.Send(
      "POST /wait HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n"
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
      "POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 4000000\r\n\r\n";
  std::optional<TestClient> holder;
  holder.emplace(port());
  ASSERT_TRUE(holder->Send(head + std::string(900 << 10, 'x')));
  // Small ones do not count, whatever is held.
  const std::string small(kSmallRequestBytes - 1000, 'x');
  EXPECT_EQ(
      TestClient(port()).Exchange(HttpText("POST", "/echo", small)).status,
      200);
  // Once all of the first has been taken in, a second is too much. Before, the
  // first may be what is too much: then there is another one.
  TestResponse response;
  for (int i = 1; i < 1000 && response.status != 503; ++i) {
    if (i % 50 == 0) {
      holder.emplace(port());
      ASSERT_TRUE(holder->Send(head + std::string(900 << 10, 'x')));
    }
    TestClient client(port());
    response =
        client.Exchange(HttpText("POST", "/echo", std::string(300 << 10, 'x')));
  }
  EXPECT_EQ(response.status, 503);
  EXPECT_THAT(response.body, HasSubstr("too_many_large_requests"));
  holder.reset();
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
  EXPECT_EQ(
      asking
          .Exchange("POST /refused HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n"
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
  const TestResponse early = declared.Exchange(
      "POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 1001\r\n\r\n");
  EXPECT_EQ(early.status, 413);
  EXPECT_THAT(early.body, HasSubstr("larger than 1000 bytes"));
  TestClient chunked(port());
  EXPECT_EQ(
      chunked
          .Exchange("POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: "
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
  EXPECT_TRUE(body.Send(
      "POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nab"));
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
  for (TestClient* client : {&first, &second}) {
    ASSERT_TRUE(client->Send(HttpText("GET", "/stream")));
    EXPECT_EQ(client->ReadHead().status, 200);
  }
  TestClient third(port());
  const TestResponse response = third.ReadResponse();
  EXPECT_EQ(response.status, 503);
  EXPECT_THAT(response.body, HasSubstr("too many connections"));
  first.Close();
  ASSERT_TRUE(WaitForConnections(1));
  EXPECT_EQ(TestClient(port()).Exchange(HttpText("GET", "/echo")).status, 200);
}

TEST_F(HttpServerTest, BeyondTheLimitTheLongestIdleConnectionMakesRoom) {
  options_.max_connections = 3;
  Start();
  TestClient busy(port()), oldest(port()), newer(port());
  ASSERT_TRUE(busy.Send(HttpText("GET", "/stream")));
  EXPECT_EQ(busy.ReadHead().status, 200);
  EXPECT_EQ(oldest.Exchange(HttpText("GET", "/echo")).status, 200);
  EXPECT_EQ(newer.Exchange(HttpText("GET", "/echo")).status, 200);
  TestClient fourth(port());
  EXPECT_EQ(fourth.Exchange(HttpText("GET", "/echo")).status, 200);
  EXPECT_TRUE(oldest.AtEnd());
  EXPECT_EQ(newer.Exchange(HttpText("GET", "/echo")).status, 200);
  auto stream = handler_.TakeExchange();
  ASSERT_NE(stream, nullptr);
  stream->Post([stream] {
    stream->Write("data: still here\n\n");
    stream->FinishStream();
  });
  EXPECT_EQ(busy.ReadChunk(), "data: still here\n\n");
}

TEST_F(HttpServerTest, WithoutDescriptorsIdleConnectionsMakeRoom) {
  Start();
  std::vector<TestClient> idle;
  for (int i = 0; i < 4; ++i) {
    idle.emplace_back(port());
    ASSERT_EQ(idle.back().Exchange(HttpText("GET", "/echo")).status, 200);
  }
  int status = 0, num_left = 0;
  {
    DescriptorShortage shortage;
    shortage.LetGo();  // for the client's end, which is of this process as well
    TestClient late(port());
    ASSERT_TRUE(late.connected());
    status = late.Exchange(HttpText("GET", "/echo")).status;
    num_left = server_->num_connections();
  }
  // Behind the shortage, since sanitizers want descriptors themselves.
  EXPECT_EQ(status, 200);
  // The kernel wants a descriptor before it looks for a connection: one more
  // makes room for that, sooner or later.
  EXPECT_THAT(num_left, testing::AnyOf(3, 4));
}

TEST_F(HttpServerTest, WithoutDescriptorsAndWithoutIdleOnesNewOnesWait) {
  Start();
  TestClient busy(port());
  ASSERT_TRUE(busy.Send(HttpText("GET", "/stream")));
  EXPECT_EQ(busy.ReadHead().status, 200);
  DescriptorShortage shortage;
  shortage.LetGo();
  const auto cpu_before = std::clock();
  TestClient late(port());
  ASSERT_TRUE(late.connected());
  ASSERT_TRUE(late.Send(HttpText("GET", "/echo")));
  pollfd nothing = {late.fd(), POLLIN, 0};
  EXPECT_EQ(poll(&nothing, 1, 500), 0);
  // It looks again now and then; it does not spin.
  EXPECT_LT(std::clock() - cpu_before, CLOCKS_PER_SEC / 5);
  busy.Close();  // and the server's end of it follows
  EXPECT_EQ(late.ReadResponse().status, 200);
}

}  // namespace
}  // namespace moebius
