// What an HTTP handler sees: requests, responses, and the exchange of one for
// the other. Free of any HTTP library.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace moebius {

struct HttpRequest {
  std::string method;  // "GET"
  std::string path;    // percent-decoded, without the query
  std::string query;   // as sent, without '?'
  // HOST[:PORT] of a target that is a whole URL; it stands above Host.
  std::string authority;
  // By which logs and answers name it: the client's X-Request-Id, or our own.
  std::string id;
  // Names in lower case, in the order sent.
  std::vector<std::pair<std::string, std::string>> headers;
  std::string body;

  // The first header of that (lower case) name, or null.
  const std::string* Header(std::string_view name) const {
    for (const auto& [key, value] : headers) {
      if (key == name) return &value;
    }
    return nullptr;
  }
};

// Length, date and connection headers are the server's business.
struct HttpResponse {
  int status = 200;
  std::string content_type = "application/json";
  std::vector<std::pair<std::string, std::string>> headers;
  std::string body;
};

// HttpExchange
//
// One request and the answer to it: either Respond() once, or StartStream(),
// any number of Write() and Flush(), FinishStream(). Dropping the exchange
// unanswered leaves the client waiting, so don't.
//
// Threading: all but Post() are called on the exchange's own thread, which is
// the one that Handle() was called on. Post() may be called from anywhere.
// After the client has gone, calls do nothing.
class HttpExchange {
 public:
  virtual ~HttpExchange() = default;

  virtual const HttpRequest& request() const = 0;
  // The request's body, to be moved from.
  virtual std::string TakeBody() = 0;

  // What the log's line of the request says behind the rest; before the end of
  // the answer.
  virtual void Remark([[maybe_unused]] std::string remark) {}

  virtual void Respond(HttpResponse response) = 0;

  // Sends the status line and headers of a response whose length is not known
  // yet; `head.body` is ignored.
  virtual void StartStream(HttpResponse head) = 0;
  // Appends to the connection's buffer. A client that leaves more than the
  // server's max_stream_buffer_bytes unread is cut off at the next Write().
  virtual void Write(std::string_view data) = 0;
  // Sends what Write() has gathered, as far as the socket takes it; the rest
  // follows by itself.
  virtual void Flush() = 0;
  virtual void FinishStream() = 0;

  // False once the answer is complete or the client has gone.
  virtual bool open() const = 0;

  // `closed` runs once, on the exchange's thread, if the client goes away, is
  // cut off, or the server stops before the answer is complete. Replaces an
  // earlier one.
  virtual void OnClosed(std::function<void()> closed) = 0;

  // The io thread of this exchange, 0 .. IoThreads::size() - 1.
  virtual int thread() const = 0;
  // Runs `task` on the exchange's thread. False, and `task` is dropped, when
  // the threads have been stopped.
  virtual bool Post(std::function<void()> task) = 0;
};

// Threading: both are called on any io thread, concurrently for different
// connections. They must not block.
class HttpHandler {
 public:
  virtual ~HttpHandler() = default;

  // Called when the headers of a request are complete and before any of its
  // body is kept. An answer refuses the request: it is sent, the rest of what
  // the client sends is thrown away, and the connection ends.
  // `head.body` is empty.
  virtual std::optional<HttpResponse> Refuse(
      [[maybe_unused]] const HttpRequest& head) {
    return std::nullopt;
  }

  virtual void Handle(std::shared_ptr<HttpExchange> exchange) = 0;

  // Headers that every answer to `head` has, refusals too.
  virtual std::vector<std::pair<std::string, std::string>> HeadersFor(
      [[maybe_unused]] const HttpRequest& head) {
    return {};
  }
};

}  // namespace moebius
