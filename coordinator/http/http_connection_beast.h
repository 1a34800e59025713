// One accepted connection: reads requests, hands them out one at a time, and
// sends what the handler answers. Only for the HTTP server.
#pragma once

#include <boost/asio/awaitable.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/beast/core/flat_buffer.hpp>
#include <boost/beast/http/parser.hpp>
#include <boost/beast/http/string_body.hpp>
#include <chrono>
#include <cstddef>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

#include "coordinator/http/http_answer_beast.h"
#include "coordinator/http/http_message.h"
#include "coordinator/http/http_server.h"
#include "coordinator/http/io_thread_asio.h"

namespace moebius {

class HttpConnection;

// What connections need of their server. One for each io thread; called on it.
class HttpConnectionHost {
 public:
  virtual ~HttpConnectionHost() = default;
  virtual const HttpServerOptions& options() const = 0;
  virtual HttpHandler& handler() = 0;
  // True once the server takes no new requests.
  virtual bool draining() const = 0;
  // The value of a Date header for now.
  virtual std::string_view date() = 0;
  // A new id for a request that brings none.
  virtual std::string NewRequestId() = 0;
  virtual void OnConnectionClosed(HttpConnection* connection) = 0;
  // A connection holds `delta` more bytes of an incomplete request (or fewer).
  // False when all of them hold too much.
  virtual bool ChargeIncomplete(std::ptrdiff_t delta) = 0;
};

// HttpConnection
//
// Lives as long as its read loop and its pending write; exchanges only watch
// it. Input is read when the socket is readable, so a connection that waits
// holds no buffer. While an answer is under way reading goes on (that is how a
// client's leaving is noticed) up to a bound, and what was read is parsed when
// the answer is complete.
//
// Threading: its own io thread only.
class HttpConnection : public std::enable_shared_from_this<HttpConnection> {
 public:
  using Clock = std::chrono::steady_clock;

  HttpConnection(boost::asio::ip::tcp::socket socket,
                 std::shared_ptr<HttpConnectionHost> host,
                 std::shared_ptr<IoThread> thread, int thread_index);
  ~HttpConnection();

  void Start();

  // Closes at once; an open exchange hears of it before this returns if
  // `notify_now`, else soon.
  void Close(bool notify_now = false);
  // Closes if nothing is under way, else after the answer.
  void CloseWhenIdle();
  // Applies the timeouts. Called now and then.
  void CheckDeadline(Clock::time_point now);
  // Since when it has been waiting for a request of which nothing has come.
  // Nothing if one is under way, or if it is so new that one must be on its
  // way.
  std::optional<Clock::time_point> IdleSince(Clock::time_point now) const;

  // ---- for the current exchange (http_connection_write_beast.cc) ----
  void Respond(const HttpResponse& response);
  void StartStream(const HttpResponse& head);
  void Write(std::string_view data);
  void Flush();
  void FinishStream();

 private:
  class Exchange;
  using Parser =
      boost::beast::http::request_parser<boost::beast::http::string_body>;
  // What the deadline is for.
  enum class Waiting { kIdle, kHeader, kBody, kAnswer, kLinger };

  static boost::asio::awaitable<void> ReadLoop(
      std::shared_ptr<HttpConnection> self);
  // Reads until the socket is empty or a bound is reached. False: it is over.
  bool ReadAvailable();
  bool IsPaused() const;
  // True once all that is left is to send and to close.
  bool IsEnding() const {
    return waiting_ == Waiting::kLinger ||
           (close_when_flushed_ && current_ == nullptr);
  }
  void OnPeerClosed();

  void ProcessInput();
  void ParseSome(bool* need_more);
  // Those before a request line (RFC 9112, 2.2). False: there are too many.
  bool SkipEmptyLines();
  void BeginRequest();
  // Names the request, in logs and in every answer to it.
  void SetRequestId(std::string id);
  // What is left when OnHeaderDone() has refused a request: no parser.
  void OnHeaderDone();
  // Bounds on what an incomplete request may hold; refuses it beyond them.
  void CheckIncomplete();
  void ReleaseCharge();
  void Dispatch();
  void Reject(int status, std::string_view message, std::string_view code);
  void RejectWith(const HttpResponse& response);

  // Lines for the log, with the request's id: what it is answered, and how the
  // answer ended.
  void LogAnswer(const HttpResponse& response);
  void LogEnd(bool complete);
  void AppendHead(const HttpResponse& response, AnswerFrame::Body body);
  void AppendWhole(const HttpResponse& response);
  void FinishExchange();
  void OnFlushed();
  void Wait(Waiting what);
  size_t unsent() const { return out_.size() - out_begin_; }

  boost::asio::ip::tcp::socket socket_;
  std::shared_ptr<HttpConnectionHost> host_;
  const std::shared_ptr<IoThread> thread_;
  const int thread_index_;

  boost::beast::flat_buffer in_;
  std::optional<Parser> parser_;
  bool header_done_ = false;
  HttpRequest head_;         // once the header is done; without the body
  int num_empty_lines_ = 0;  // before the request
  // Of in_, for line ends, before the header is done.
  size_t scanned_bytes_ = 0;
  std::string request_id_;    // from the header on until the next request
  std::string answer_lines_;  // header lines of all answers to it
  size_t charged_bytes_ = 0;
  bool processing_ = false;  // inside ProcessInput
  size_t lingered_bytes_ = 0;
  boost::asio::steady_timer resume_;  // cancelled when reading may go on

  std::shared_ptr<Exchange> current_;
  bool keep_alive_ = true;
  bool http_1_0_ = false;
  bool head_only_ = false;
  int answer_status_ = 0;  // of the current exchange, once its head is written
  size_t answer_bytes_ = 0;
  Clock::time_point dispatched_at_;
  bool chunked_ = false;

  std::string out_;
  size_t out_begin_ = 0;  // bytes before it are sent
  bool write_waiting_ = false;
  Clock::time_point last_write_progress_;
  bool close_when_flushed_ = false;

  bool peer_closed_ = false;  // and the read loop has ended
  bool closed_ = false;
  Waiting waiting_ = Waiting::kIdle;
  Clock::time_point waiting_since_;
  Clock::time_point deadline_;
};

}  // namespace moebius
