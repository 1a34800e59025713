// The HTTP server alone, over loopback sockets.
#pragma once

#include <atomic>
#include <condition_variable>
#include <functional>
#include <map>
#include <mutex>
#include <string>
#include <vector>

#include "coordinator/http/http_server.h"
#include "gtest/gtest.h"
#include "tests/status_matchers.h"
#include "tests/unit/coordinator/http/test_client.h"

namespace moebius {

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

}  // namespace moebius
