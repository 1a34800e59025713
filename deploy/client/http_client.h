// A small HTTP/1.1 client: one request at a time over a connection that is kept
// open, whole answers or streamed ones.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "deploy/client/event_loop.h"

namespace moebius {

// "http://HOST[:PORT]", and what is shown there.
struct Url {
  std::string host;  // without brackets
  int port = 80;
  std::string api_key;  // sent as a bearer token if not empty
  // As in a Host field: "127.0.0.1:8000", "[::1]:8000".
  std::string authority() const;
};
// Errors: kInvalidArgument for another scheme (there is no TLS here), a path,
// or a port that is none.
absl::StatusOr<Url> ParseUrl(std::string_view text);

// Hears an answer, on the loop's thread. OnEnd comes last, once, and only it
// may follow an error.
class HttpListener {
 public:
  virtual ~HttpListener() = default;
  virtual void OnStatus(int status) = 0;
  virtual void OnBody(std::string_view bytes) = 0;
  // OK: the answer is whole. The connection may be used again from in here.
  virtual void OnEnd(const absl::Status& status) = 0;
};

// HttpConnection
//
// Connects when first used, and anew when the server closed it in between.
// Lifetime: the listener outlives its request or the connection; the loop
// outlives both. Destroying it breaks a request off, without OnEnd.
class HttpConnection {
 public:
  HttpConnection(EventLoop& loop, Url url);
  ~HttpConnection();
  HttpConnection(const HttpConnection&) = delete;
  HttpConnection& operator=(const HttpConnection&) = delete;

  // REQUIRES: no request is under way. An empty body is a GET's. `headers` are
  // whole lines with their line ends, or nothing.
  void Send(std::string_view method, std::string_view target,
            std::string_view body, HttpListener& listener,
            std::string_view headers = "");

 private:
  struct Impl;
  std::shared_ptr<Impl> impl_;
};

struct HttpAnswer {
  int status = 0;
  std::string body;
};
inline constexpr size_t kMaxAnswerBytes = size_t{64} << 20;

// One request over a connection of its own.
// Errors: kUnavailable when nobody listens there or the connection broke,
// kDeadlineExceeded, kCancelled.
absl::StatusOr<HttpAnswer> HttpRequest(EventLoop& loop, const Url& url,
                                       std::string_view method,
                                       std::string_view target,
                                       std::string_view body,
                                       absl::Duration timeout);

// SseParser
//
// Takes an event stream in any pieces and calls back with the data of each
// event ("data:" lines joined by line feeds); it knows the last "id:", other
// fields are passed over.
class SseParser {
 public:
  static constexpr size_t kMaxEventBytes = size_t{16} << 20;

  SseParser() = default;
  // Goes on behind an event of an earlier stream.
  explicit SseParser(std::string last_event_id)
      : last_event_id_(std::move(last_event_id)) {}
  // Errors: kResourceExhausted for an event that is larger.
  absl::Status Add(std::string_view bytes,
                   const std::function<void(std::string_view)>& on_data);

  // Of the last event that had one.
  const std::string& last_event_id() const { return last_event_id_; }

 private:
  std::string last_event_id_;
  std::string pending_;  // an event that has not ended
};

}  // namespace moebius
