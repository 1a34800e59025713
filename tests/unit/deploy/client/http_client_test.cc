// The command line's HTTP client, against a server of canned bytes.
#include "deploy/client/http_client.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "common/base/unique_fd.h"
#include "deploy/client/admin_client.h"
#include "deploy/client/completion_stream.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/status_matchers.h"

namespace moebius {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;

constexpr absl::Duration kTimeout = absl::Seconds(20);

// Answers each connection, one after the other, with the bytes given for it:
// each piece after one more request has come. Then it hangs up.
class CannedServer {
 public:
  explicit CannedServer(std::vector<std::vector<std::string>> connections)
      : listener_(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)) {
    sockaddr_in address = {};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    EXPECT_EQ(bind(listener_.get(), reinterpret_cast<sockaddr*>(&address),
                   sizeof address),
              0);
    socklen_t size = sizeof address;
    getsockname(listener_.get(), reinterpret_cast<sockaddr*>(&address), &size);
    port_ = ntohs(address.sin_port);
    listen(listener_.get(), 8);
    thread_ = std::thread([this, connections = std::move(connections)] {
      for (const auto& answers : connections) Serve(answers);
    });
  }
  ~CannedServer() {
    shutdown(listener_.get(), SHUT_RDWR);
    thread_.join();
  }
  Url url() const { return Url{"127.0.0.1", port_}; }
  const std::vector<std::string>& requests() const { return requests_; }

 private:
  void Serve(const std::vector<std::string>& answers) {
    UniqueFd peer(accept(listener_.get(), nullptr, nullptr));
    if (!peer) return;
    for (const std::string& answer : answers) {
      char buffer[65536];
      const ssize_t n = read(peer.get(), buffer, sizeof buffer);
      if (n <= 0) return;
      requests_.emplace_back(buffer, static_cast<size_t>(n));
      EXPECT_EQ(send(peer.get(), answer.data(), answer.size(), MSG_NOSIGNAL),
                static_cast<ssize_t>(answer.size()));
    }
  }

  UniqueFd listener_;
  int port_ = 0;
  std::vector<std::string> requests_;
  std::thread thread_;
};

std::string Whole(const std::string& body, const std::string& status = "200 OK",
                  const std::string& fields = "") {
  return "HTTP/1.1 " + status +
         "\r\nContent-Length: " + std::to_string(body.size()) + "\r\n" +
         fields + "\r\n" + body;
}

std::string Chunked(const std::vector<std::string>& chunks) {
  std::string text = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
  for (const std::string& chunk : chunks) {
    char size[16];
    std::snprintf(size, sizeof size, "%zx\r\n", chunk.size());
    text += size + chunk + "\r\n";
  }
  return text + "0\r\n\r\n";
}

TEST(ParseUrl, TakesAddressAndPort) {
  const auto expect = [](const char* text, const char* host, int port) {
    const absl::StatusOr<Url> url = ParseUrl(text);
    ASSERT_THAT(url, IsOk()) << text;
    EXPECT_EQ(url->host, host) << text;
    EXPECT_EQ(url->port, port) << text;
  };
  expect("http://127.0.0.1:8001", "127.0.0.1", 8001);
  expect("http://127.0.0.1:8001/", "127.0.0.1", 8001);
  expect("http://localhost:1", "127.0.0.1", 1);
  expect("http://[::1]:65535", "::1", 65535);
  expect("http://node-3", "node-3", 80);
  EXPECT_EQ(ParseUrl("http://[::1]:9")->authority(), "[::1]:9");
  EXPECT_EQ(ParseUrl("http://10.0.0.1:9")->authority(), "10.0.0.1:9");
}

TEST(ParseUrl, RefusesTheRestAndSaysWhatIsAllowed) {
  for (const char* text :
       {"", "127.0.0.1:8001", "https://127.0.0.1", "http://", "http://:80",
        "http://a:0", "http://a:65536", "http://a:x", "http://a:80/path",
        "http://[::1", "http://[::1]x", "http://a b", "http://u@a"}) {
    EXPECT_THAT(ParseUrl(text),
                StatusIs(absl::StatusCode::kInvalidArgument,
                         HasSubstr("allowed is http://ADDRESS:PORT")))
        << text;
  }
}

TEST(HttpRequest, NobodyListensIsUnavailable) {
  EventLoop loop;
  UniqueFd holder(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_in address = {};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  bind(holder.get(), reinterpret_cast<sockaddr*>(&address), sizeof address);
  socklen_t size = sizeof address;
  getsockname(holder.get(), reinterpret_cast<sockaddr*>(&address), &size);
  EXPECT_THAT(
      HttpRequest(loop, Url{"127.0.0.1", ntohs(address.sin_port)}, "GET", "/",
                  "", kTimeout),
      StatusIs(absl::StatusCode::kUnavailable, HasSubstr("cannot connect")));
}

TEST(HttpRequest, ServerThatHangsUpInTheMiddleIsUnavailable) {
  CannedServer server({{"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc"}});
  EventLoop loop;
  EXPECT_THAT(HttpRequest(loop, server.url(), "GET", "/", "", kTimeout),
              StatusIs(absl::StatusCode::kUnavailable));
}

TEST(HttpRequest, SomethingElseThanHttpIsUnavailable) {
  CannedServer server({{"SSH-2.0-x\r\n\r\n"}});
  EventLoop loop;
  EXPECT_THAT(HttpRequest(loop, server.url(), "GET", "/", "", kTimeout),
              StatusIs(absl::StatusCode::kUnavailable,
                       HasSubstr("not an HTTP answer")));
}

TEST(HttpRequest, SilentServerRunsIntoTheDeadline) {
  UniqueFd listener(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_in address = {};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  bind(listener.get(), reinterpret_cast<sockaddr*>(&address), sizeof address);
  listen(listener.get(), 1);
  socklen_t size = sizeof address;
  getsockname(listener.get(), reinterpret_cast<sockaddr*>(&address), &size);
  EventLoop loop;
  EXPECT_THAT(HttpRequest(loop, Url{"127.0.0.1", ntohs(address.sin_port)},
                          "GET", "/", "", absl::Milliseconds(50)),
              StatusIs(absl::StatusCode::kDeadlineExceeded));
}

TEST(HttpRequest, SendsWhatWasSaidAndReadsTheAnswer) {
  CannedServer server({{Whole("{\"a\":1}", "201 Created")}});
  EventLoop loop;
  const absl::StatusOr<HttpAnswer> answer =
      HttpRequest(loop, server.url(), "POST", "/x?y", "{}", kTimeout);
  ASSERT_THAT(answer, IsOk());
  EXPECT_EQ(answer->status, 201);
  EXPECT_EQ(answer->body, "{\"a\":1}");
  EXPECT_THAT(server.requests()[0], HasSubstr("POST /x?y HTTP/1.1\r\n"));
  EXPECT_THAT(server.requests()[0], HasSubstr("Content-Length: 2\r\n"));
  EXPECT_THAT(server.requests()[0],
              HasSubstr("Host: " + server.url().authority() + "\r\n"));
}

TEST(HttpRequest, ShowsItsKeyIfItHasOne) {
  CannedServer server({{Whole("{}", "200 OK")}, {Whole("{}", "200 OK")}});
  EventLoop loop;
  Url url = server.url();
  ASSERT_THAT(HttpRequest(loop, url, "GET", "/", "", kTimeout), IsOk());
  url.api_key = "sk-0123456789abcdef";
  ASSERT_THAT(HttpRequest(loop, url, "GET", "/", "", kTimeout), IsOk());
  EXPECT_THAT(server.requests()[0], Not(HasSubstr("Authorization")));
  EXPECT_THAT(server.requests()[1],
              HasSubstr("\r\nAuthorization: Bearer sk-0123456789abcdef\r\n"));
}

TEST(HttpRequest, ReadsChunksAndBodiesThatLastAsLongAsTheConnection) {
  CannedServer server({{Chunked({"ab", "c", std::string(40000, 'd')})},
                       {"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nxyz"},
                       {"HTTP/1.1 204 No Content\r\n\r\n"}});
  EventLoop loop;
  absl::StatusOr<HttpAnswer> answer =
      HttpRequest(loop, server.url(), "GET", "/", "", kTimeout);
  ASSERT_THAT(answer, IsOk());
  EXPECT_EQ(answer->body, "abc" + std::string(40000, 'd'));
  answer = HttpRequest(loop, server.url(), "GET", "/", "", kTimeout);
  ASSERT_THAT(answer, IsOk());
  EXPECT_EQ(answer->body, "xyz");
  answer = HttpRequest(loop, server.url(), "GET", "/", "", kTimeout);
  ASSERT_THAT(answer, IsOk());
  EXPECT_EQ(answer->status, 204);
}

// Counts and asks again from OnEnd.
class Repeater : public HttpListener {
 public:
  Repeater(HttpConnection& connection, int times)
      : connection_(connection), left_(times) {}
  void Go() { connection_.Send("GET", "/", "", *this); }
  void OnStatus(int status) override { statuses.push_back(status); }
  void OnBody(std::string_view bytes) override { body.append(bytes); }
  void OnEnd(const absl::Status& status) override {
    last = status;
    if (--left_ > 0) {
      Go();
    } else {
      done = true;
    }
  }
  std::vector<int> statuses;
  std::string body;
  absl::Status last;
  bool done = false;

 private:
  HttpConnection& connection_;
  int left_;
};

TEST(HttpConnection, IsKeptAndMadeAnewWhenTheServerClosedIt) {
  CannedServer server({{Whole("1"), Whole("2")}, {Whole("3")}});
  EventLoop loop;
  HttpConnection connection(loop, server.url());
  Repeater repeater(connection, 3);
  repeater.Go();
  ASSERT_THAT(loop.RunUntil([&] { return repeater.done; }, kTimeout), IsOk());
  EXPECT_THAT(repeater.last, IsOk());
  EXPECT_EQ(repeater.body, "123");
  EXPECT_THAT(repeater.statuses, ElementsAre(200, 200, 200));
}

TEST(HttpConnection, DestroyedInTheMiddleSaysNothingMore) {
  // The second answer keeps the server waiting for a second request, so that it
  // does not hang up by itself.
  CannedServer server({{"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc",
                        Whole("never asked for")}});
  EventLoop loop;
  auto connection = std::make_unique<HttpConnection>(loop, server.url());
  Repeater repeater(*connection, 1);
  repeater.Go();
  ASSERT_THAT(loop.RunUntil([&] { return repeater.body == "abc"; }, kTimeout),
              IsOk());
  connection.reset();
  bool passed = false;
  loop.After(absl::Milliseconds(1), [&] { passed = true; });
  ASSERT_THAT(loop.RunUntil([&] { return passed; }, kTimeout), IsOk());
  EXPECT_FALSE(repeater.done);
}

TEST(EventLoop, SignalEndsTheWaitAndNotTheProcess) {
  EventLoop loop;
  raise(SIGTERM);
  EXPECT_THAT(loop.RunUntil([] { return false; }, kTimeout),
              StatusIs(absl::StatusCode::kCancelled));
  bool passed = false;
  loop.After(absl::ZeroDuration(), [&] { passed = true; });
  EXPECT_THAT(loop.FinishUntil([&] { return passed; }, kTimeout), IsOk());
}

std::vector<std::string> Events(const std::string& text, size_t piece) {
  SseParser parser;
  std::vector<std::string> events;
  for (size_t at = 0; at < text.size(); at += piece) {
    EXPECT_THAT(
        parser.Add(std::string_view(text).substr(at, piece),
                   [&](std::string_view data) { events.emplace_back(data); }),
        IsOk());
  }
  return events;
}

TEST(SseParser, PiecesOfAnySizeGiveTheSameEvents) {
  const std::string text =
      "data: one\n\nid: 4\ndata: two\n\n: comment\n\ndata:three\r\n\r\n"
      "data: a\ndata: b\n\nevent: x\n\ndata: \n\ndata: [DONE]\n\ndata: cut";
  for (size_t piece = 1; piece <= text.size(); ++piece) {
    EXPECT_THAT(Events(text, piece),
                ElementsAre("one", "two", "three", "a\nb", "", "[DONE]"))
        << piece;
  }
}

TEST(SseParser, EventOverTheBoundIsRefused) {
  SseParser parser;
  const std::string block(1 << 20, 'x');
  absl::Status status;
  for (int i = 0; i < 17 && status.ok(); ++i) {
    status = parser.Add(block, [](std::string_view) { FAIL(); });
  }
  EXPECT_THAT(status, StatusIs(absl::StatusCode::kResourceExhausted));
}

std::string Event(const std::string& json) { return "data: " + json + "\n\n"; }

CompletionResult Complete(const std::string& answer, bool keep) {
  CannedServer server({{answer}});
  EventLoop loop;
  CompletionStream stream(loop, server.url(), CompletionOptions{keep});
  CompletionResult result;
  bool done = false;
  int events = 0;
  stream.Begin(
      "/v1/completions", "{}", [&] { ++events; },
      [&](CompletionResult r) {
        result = std::move(r);
        done = true;
      });
  EXPECT_THAT(loop.RunUntil([&] { return done; }, kTimeout), IsOk());
  EXPECT_EQ(static_cast<size_t>(events), result.times.size());
  return result;
}

const std::vector<std::string>& GoodChunks() {
  static const auto* chunks = new std::vector<std::string>{
      Event(R"({"choices":[{"text":"a","token_ids":[1]}]})"),
      Event(R"({"choices":[{"text":"b","token_ids":[2,3]}]})") +
          Event(R"({"choices":[{"text":"c","token_ids":[4],)"
                R"("finish_reason":"length"}]})"),
      Event(R"({"choices":[],"usage":{"prompt_tokens":7,)"
            R"("completion_tokens":4}})"),
      Event("[DONE]")};
  return *chunks;
}

TEST(CompletionStream, KeepsWhatCame) {
  const CompletionResult result = Complete(Chunked(GoodChunks()), true);
  EXPECT_THAT(result.status, IsOk());
  EXPECT_EQ(result.text, "abc");
  EXPECT_THAT(result.token_ids, ElementsAre(1, 2, 3, 4));
  EXPECT_THAT(result.text_ends, ElementsAre(1, 2, 3));
  EXPECT_EQ(result.times.size(), 3u);
  EXPECT_EQ(result.prompt_tokens, 7u);
  EXPECT_EQ(result.output_tokens, 4u);
  EXPECT_EQ(result.finish_reason, "length");
}

TEST(CompletionStream, CheapOneKnowsTimesUsageAndEnd) {
  const CompletionResult result = Complete(Chunked(GoodChunks()), false);
  EXPECT_THAT(result.status, IsOk());
  EXPECT_EQ(result.times.size(), 3u);
  EXPECT_EQ(result.output_tokens, 4u);
  EXPECT_EQ(result.finish_reason, "length");
  EXPECT_EQ(result.text, "");
}

TEST(CompletionStream, StreamWithoutDoneIsAnError) {
  std::vector<std::string> chunks = GoodChunks();
  chunks.pop_back();
  EXPECT_THAT(Complete(Chunked(chunks), true).status,
              StatusIs(absl::StatusCode::kInternal, HasSubstr("[DONE]")));
}

TEST(CompletionStream, ErrorsOfTheServerAreItsWords) {
  EXPECT_THAT(
      Complete(Whole(R"({"error":{"message":"no such model"}})", "404 x"), true)
          .status,
      StatusIs(absl::StatusCode::kInvalidArgument,
               HasSubstr("404: no such model")));
  EXPECT_THAT(Complete(Chunked({Event(R"({"error":{"message":"broke"}})"),
                                Event("[DONE]")}),
                       true)
                  .status,
              StatusIs(absl::StatusCode::kInternal, HasSubstr("broke")));
  EXPECT_THAT(
      Complete(Chunked({Event("nonsense"), Event("[DONE]")}), true).status,
      StatusIs(absl::StatusCode::kInternal));
}

TEST(AdminClient, RefusedSwitchIsAnErrorWithItsReason) {
  CannedServer server({{Whole(
      R"({"from":"ep","to":"tp","done":false,"reason":"KV does not fit"})")}});
  EventLoop loop;
  EXPECT_THAT(RequestLayout(loop, server.url(), "tp", kTimeout),
              StatusIs(absl::StatusCode::kFailedPrecondition,
                       HasSubstr("KV does not fit")));
}

TEST(AdminClient, LayoutThatIsInForceAlreadyIsNoFailure) {
  const std::string conflict =
      Whole(R"({"error":{"message":"already in tp"}})", "409 Conflict");
  CannedServer server({{conflict},
                       {Whole(R"({"layout":"tp"})")},
                       {conflict},
                       {Whole(R"({"layout":"ep"})")}});
  EventLoop loop;
  const absl::StatusOr<SwitchFigures> figures =
      RequestLayout(loop, server.url(), "tp", kTimeout);
  ASSERT_THAT(figures, IsOk());
  EXPECT_FALSE(figures->done);
  EXPECT_THAT(RequestLayout(loop, server.url(), "tp", kTimeout),
              StatusIs(absl::StatusCode::kFailedPrecondition,
                       HasSubstr("409: already in tp")));
}

TEST(AdminClient, FiguresOfASwitch) {
  CannedServer server({{Whole(
      R"({"from":"ep","to":"tp","done":true,"reason":"","weight_bytes":5,)"
      R"("kv_bytes":6,"pause_ms":1.5,"weight_ms":2})")}});
  EventLoop loop;
  const absl::StatusOr<SwitchFigures> figures =
      RequestLayout(loop, server.url(), "tp", kTimeout);
  ASSERT_THAT(figures, IsOk());
  EXPECT_TRUE(figures->done);
  EXPECT_EQ(figures->weight_bytes, 5u);
  EXPECT_EQ(figures->kv_bytes, 6u);
  EXPECT_EQ(figures->pause_ms, 1.5);
  EXPECT_EQ(figures->weight_ms, 2.0);
  EXPECT_EQ(figures->kv_ms, 0.0);
}

}  // namespace
}  // namespace moebius
