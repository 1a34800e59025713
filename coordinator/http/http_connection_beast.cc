#include "coordinator/http/http_connection_beast.h"

#include <algorithm>
#include <boost/asio/as_tuple.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <boost/beast/http/error.hpp>
#include <exception>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/str_format.h"
#include "common/base/cat.h"
#include "common/base/logging.h"
#include "common/base/printable.h"
#include "coordinator/http/api_error.h"
#include "coordinator/http/http_head.h"

namespace moebius {
namespace {

namespace asio = boost::asio;
namespace http = boost::beast::http;
using tcp = asio::ip::tcp;
using boost::system::error_code;

constexpr auto kTuple = asio::as_tuple(asio::use_awaitable);

constexpr size_t kReadBytes = 16 << 10;
// Read at one go before other connections get their turn.
constexpr size_t kMaxReadPerTurn = 256 << 10;
// Requests sent ahead of their turn; beyond it the client has to wait.
constexpr size_t kMaxPipelinedBytes = 64 << 10;
// After an error the client may still be sending: what it sends is read and
// dropped, so that it gets to see the answer rather than a reset.
constexpr size_t kMaxLingerBytes = 64 << 20;
constexpr std::chrono::milliseconds kLingerTime{3000};
// How long a new connection may take to its first byte before it counts as
// idle.
constexpr std::chrono::milliseconds kFirstByteTime{1000};
// Of what a client said, in a log line.
constexpr size_t kMaxShownBytes = 200;
constexpr size_t kMaxShownReasonBytes = 600;
constexpr int kMaxEmptyLines = 16;

constexpr std::string_view kBareLineFeed =
    "malformed HTTP request: a line ends with LF alone";

std::string_view Text(const boost::beast::flat_buffer& buffer) {
  const auto bytes = buffer.data();
  return {static_cast<const char*>(bytes.data()), bytes.size()};
}

HttpRequest HeadOf(const http::request<http::string_body>& message) {
  HttpRequest request;
  const auto method = message.method_string();
  request.method.assign(method.data(), method.size());
  SplitTarget({message.target().data(), message.target().size()}, &request);
  for (const auto& field : message) {
    request.headers.emplace_back(
        absl::AsciiStrToLower(
            AbslView({field.name_string().data(), field.name_string().size()})),
        std::string(field.value().data(), field.value().size()));
  }
  return request;
}

}  // namespace

class HttpConnection::Exchange final : public HttpExchange {
 public:
  Exchange(std::weak_ptr<HttpConnection> connection, HttpRequest request,
           std::shared_ptr<IoThread> io_thread, int thread_index)
      : connection_(std::move(connection)),
        request_(std::move(request)),
        io_thread_(std::move(io_thread)),
        thread_index_(thread_index) {}

  const HttpRequest& request() const override { return request_; }
  std::string TakeBody() override { return std::move(request_.body); }
  void Remark(std::string remark) override { remark_ = std::move(remark); }
  const std::string& remark() const { return remark_; }

  void Respond(HttpResponse response) override {
    if (auto connection = Open(); connection && !streaming_) {
      connection->Respond(response);
    }
  }
  void StartStream(HttpResponse head) override {
    if (auto connection = Open(); connection && !streaming_) {
      streaming_ = true;
      connection->StartStream(head);
    }
  }
  void Write(std::string_view data) override {
    if (auto connection = Open(); connection && streaming_) {
      connection->Write(data);
    }
  }
  void Flush() override {
    if (auto connection = Open()) connection->Flush();
  }
  void FinishStream() override {
    if (auto connection = Open(); connection && streaming_) {
      connection->FinishStream();
    }
  }
  bool open() const override { return open_; }
  void OnClosed(std::function<void()> closed) override {
    closed_ = std::move(closed);
  }
  int thread() const override { return thread_index_; }
  bool Post(std::function<void()> task) override {
    return io_thread_->Post(std::move(task));
  }

  void MarkDone() {
    open_ = false;
    closed_ = nullptr;
  }
  std::function<void()> MarkClosed() {
    open_ = false;
    return std::exchange(closed_, nullptr);
  }

 private:
  std::shared_ptr<HttpConnection> Open() {
    return open_ ? connection_.lock() : nullptr;
  }

  const std::weak_ptr<HttpConnection> connection_;
  HttpRequest request_;
  std::string remark_;
  const std::shared_ptr<IoThread> io_thread_;
  const int thread_index_;
  bool open_ = true;
  bool streaming_ = false;
  std::function<void()> closed_;
};

HttpConnection::HttpConnection(tcp::socket socket,
                               std::shared_ptr<HttpConnectionHost> host,
                               std::shared_ptr<IoThread> thread,
                               int thread_index)
    : socket_(std::move(socket)),
      host_(std::move(host)),
      thread_(std::move(thread)),
      thread_index_(thread_index),
      resume_(socket_.get_executor()) {}

HttpConnection::~HttpConnection() {
  ReleaseCharge();
  if (!closed_) host_->OnConnectionClosed(this);
}

void HttpConnection::Start() {
  error_code ignored;
  socket_.set_option(tcp::no_delay(true), ignored);
  socket_.non_blocking(true, ignored);
  if (const int bytes = host_->options().socket_send_buffer_bytes; bytes > 0) {
    socket_.set_option(asio::socket_base::send_buffer_size(bytes), ignored);
  }
  Wait(Waiting::kHeader);  // a new connection has a request to send
  asio::co_spawn(socket_.get_executor(), ReadLoop(shared_from_this()),
                 asio::detached);
}

// ---- reading ----------------------------------------------------------------

asio::awaitable<void> HttpConnection::ReadLoop(
    std::shared_ptr<HttpConnection> self) {
  try {
    while (!self->closed_) {
      if (self->IsPaused()) {
        self->resume_.expires_at(Clock::time_point::max());
        co_await self->resume_.async_wait(kTuple);
        continue;
      }
      const auto [error] =
          co_await self->socket_.async_wait(tcp::socket::wait_read, kTuple);
      if (self->closed_) break;
      if (error || !self->ReadAvailable()) {
        self->OnPeerClosed();
        break;
      }
    }
  } catch (const std::exception& e) {
    LogError("http: a connection failed: ", e.what());
    self->Close();
  }
}

bool HttpConnection::IsPaused() const {
  if (IsEnding()) return false;
  return in_.size() >= kMaxPipelinedBytes &&
         (current_ != nullptr ||
          unsent() > host_->options().max_stream_buffer_bytes);
}

bool HttpConnection::ReadAvailable() {
  size_t turn = 0;
  while (!closed_ && !IsPaused() && turn < kMaxReadPerTurn) {
    error_code error;
    const size_t n = socket_.read_some(in_.prepare(kReadBytes), error);
    if (error == asio::error::would_block || error == asio::error::try_again) {
      return true;
    }
    if (error) return false;
    in_.commit(n);
    turn += n;
    if (IsEnding()) {
      lingered_bytes_ += n;
      in_.clear();
      if (lingered_bytes_ > kMaxLingerBytes) return false;
      continue;
    }
    ProcessInput();
    if (n < kReadBytes) return true;
  }
  return true;
}

// The peer will send no more. An answer under way is abandoned; one that is
// complete but not sent yet still goes out.
void HttpConnection::OnPeerClosed() {
  if (closed_) return;
  peer_closed_ = true;
  if (current_ == nullptr && unsent() > 0 && waiting_ != Waiting::kLinger) {
    close_when_flushed_ = true;
    return;
  }
  Close();
}

void HttpConnection::ProcessInput() {
  if (processing_) return;
  processing_ = true;
  const size_t max_unsent = host_->options().max_stream_buffer_bytes;
  bool need_more = false;
  while (!closed_ && !need_more && current_ == nullptr && !IsEnding() &&
         in_.size() > 0 && unsent() <= max_unsent) {
    ParseSome(&need_more);
  }
  processing_ = false;
  if (in_.size() == 0 && in_.capacity() > 0 && current_ == nullptr) {
    in_.shrink_to_fit();
  }
}

void HttpConnection::ParseSome(bool* need_more) {
  if (!parser_) {
    if (!SkipEmptyLines()) {
      return Reject(400, "malformed HTTP request: only empty lines",
                    "malformed_http");
    }
    if (in_.size() == 0) return;
    if (in_.size() == 1 && Text(in_) == "\r") {
      *need_more = true;
      return;
    }
    BeginRequest();
  }
  if (!header_done_ && HasBareLineFeed(Text(in_), &scanned_bytes_)) {
    return Reject(400, kBareLineFeed, "malformed_http");
  }
  error_code error;
  const size_t used = parser_->put(in_.data(), error);
  in_.consume(used);
  if (error == http::error::need_more) {
    error = {};
    *need_more = true;
  }
  if (error) {
    return RejectWith(ErrorResponse(ParseRefusal(error, host_->options())));
  }
  if (!header_done_ && parser_->is_header_done()) {
    OnHeaderDone();
    if (!parser_) return;
  }
  if (parser_->is_done()) return Dispatch();
  if (used == 0) *need_more = true;
  // With a header done, what the parser leaves begins a line of a chunk.
  if (size_t none = 0;
      header_done_ && *need_more && HasBareLineFeed(Text(in_), &none)) {
    return Reject(400, kBareLineFeed, "malformed_http");
  }
  CheckIncomplete();
}

bool HttpConnection::SkipEmptyLines() {
  while (Text(in_).starts_with("\r\n")) {
    if (++num_empty_lines_ > kMaxEmptyLines) return false;
    in_.consume(2);
  }
  return true;
}

void HttpConnection::SetRequestId(std::string id) {
  answer_lines_ = Cat("X-Request-Id: ", id, "\r\n");
  request_id_ = std::move(id);
}

void HttpConnection::BeginRequest() {
  num_empty_lines_ = 0;
  scanned_bytes_ = 0;
  request_id_.clear();
  parser_.emplace();
  // The header alone at first: it decides whether there is to be a body.
  parser_->eager(false);
  parser_->header_limit(
      static_cast<uint32_t>(host_->options().max_header_bytes));
  parser_->body_limit(host_->options().max_body_bytes);
  header_done_ = false;
  head_only_ = false;
  Wait(Waiting::kHeader);
}

void HttpConnection::OnHeaderDone() {
  header_done_ = true;
  parser_->eager(true);
  Wait(Waiting::kBody);
  const auto& message = parser_->get();
  head_ = HeadOf(message);
  head_only_ = message.method() == http::verb::head;
  http_1_0_ = message.version() < 11;
  const std::string_view id = ClientRequestId(head_);
  SetRequestId(id.empty() ? host_->NewRequestId() : std::string(id));
  head_.id = request_id_;
  for (const auto& [name, value] : host_->handler().HeadersFor(head_)) {
    answer_lines_ += Cat(name, ": ", value, "\r\n");
  }
  for (const std::string_view trouble :
       {DoubtfulFraming(head_, http_1_0_), HostTrouble(head_, http_1_0_)}) {
    if (trouble.empty()) continue;
    return Reject(400, Cat("malformed HTTP request: ", trouble),
                  "malformed_http");
  }
  if (const auto refusal = host_->handler().Refuse(head_)) {
    return RejectWith(*refusal);
  }
  const auto expect = message[http::field::expect];
  if (!parser_->is_done() && !http_1_0_ &&
      absl::EqualsIgnoreCase(AbslView({expect.data(), expect.size()}),
                             "100-continue")) {
    out_.append("HTTP/1.1 100 Continue\r\n\r\n");
    Flush();
  }
}

void HttpConnection::CheckIncomplete() {
  const auto& options = host_->options();
  // Bytes of a body are taken as they come, so what stays is the beginning of
  // a header, or of a chunk's header or trailer. Those Beast does not bound.
  if (header_done_ && in_.size() > options.max_header_bytes) {
    return Reject(431,
                  Cat("a chunk's header or trailer is larger than ",
                      options.max_header_bytes, " bytes"),
                  "headers_too_large");
  }
  const size_t held = in_.size() + parser_->get().body().size();
  const size_t charge = held > kSmallRequestBytes ? held : 0;
  const auto delta = static_cast<std::ptrdiff_t>(charge) -
                     static_cast<std::ptrdiff_t>(charged_bytes_);
  charged_bytes_ = charge;
  if (host_->ChargeIncomplete(delta) || charge == 0) return;
  ApiError error;
  error.http_status = 503;
  error.type = "service_unavailable_error";
  error.code = "too_many_large_requests";
  error.message = "too many large requests are being received";
  error.retry_after_s = 1;
  RejectWith(ErrorResponse(error));
}

// The request is whole, or has ended otherwise.
void HttpConnection::ReleaseCharge() {
  if (charged_bytes_ == 0) return;
  host_->ChargeIncomplete(-static_cast<std::ptrdiff_t>(charged_bytes_));
  charged_bytes_ = 0;
}

void HttpConnection::Dispatch() {
  http::request<http::string_body> message = parser_->release();
  parser_.reset();
  ReleaseCharge();
  keep_alive_ = message.keep_alive() && !host_->draining();
  chunked_ = false;
  Wait(Waiting::kAnswer);
  answer_status_ = 0;
  answer_bytes_ = 0;
  dispatched_at_ = Clock::now();
  head_.body = std::move(message.body());
  current_ = std::make_shared<Exchange>(weak_from_this(), std::move(head_),
                                        thread_, thread_index_);
  head_ = HttpRequest();
  const std::shared_ptr<Exchange> exchange = current_;
  try {
    host_->handler().Handle(exchange);
  } catch (const std::exception& e) {
    LogError("http: the handler of ",
             Printable(exchange->request().path, kMaxShownBytes),
             " failed: ", e.what(), ", request ", request_id_);
    ApiError error;
    error.http_status = 500;
    error.type = "server_error";
    error.message = "the server failed to handle the request";
    exchange->Respond(ErrorResponse(error));
    if (exchange->open()) Close();  // a stream had been started
  }
}

void HttpConnection::Reject(int status, std::string_view message,
                            std::string_view code) {
  ApiError error;
  error.http_status = status;
  error.message = message;
  error.code = code;
  RejectWith(ErrorResponse(error));
}

// Answers a request that never became one, and ends the connection.
void HttpConnection::RejectWith(const HttpResponse& response) {
  if (request_id_.empty()) SetRequestId(host_->NewRequestId());
  parser_.reset();
  in_.clear();
  ReleaseCharge();
  keep_alive_ = false;
  AppendWhole(response);
  head_ = HttpRequest();
  close_when_flushed_ = true;
  Flush();
}

// ---- answering --------------------------------------------------------------

void HttpConnection::LogAnswer(const HttpResponse& response) {
  constexpr int kLowestError = 400, kOurFailure = 500;
  const LogLevel level =
      response.status == kOurFailure ? LogLevel::kWarn : LogLevel::kDebug;
  if (!IsLogged(level)) return;
  const HttpRequest& request =
      current_ != nullptr ? current_->request() : head_;
  std::string why;
  if (response.status >= kLowestError) {
    why = Cat(": ", Printable(response.body, kMaxShownReasonBytes));
  }
  WriteLog(level,
           Cat("http: ", response.status, " to ",
               Printable(request.method, kMaxShownBytes), " ",
               Printable(request.path, kMaxShownBytes), ", request ",
               request_id_, why),
           request_id_);
}

void HttpConnection::LogEnd(bool complete) {
  if (!host_->options().log_requests) return;
  const HttpRequest& request = current_->request();
  const double ms =
      std::chrono::duration<double, std::milli>(Clock::now() - dispatched_at_)
          .count();
  WriteLog(LogLevel::kInfo,
           Cat("http: ", Printable(request.method, kMaxShownBytes), " ",
               Printable(request.path, kMaxShownBytes), " ",
               answer_status_ == 0 ? Cat("unanswered") : Cat(answer_status_),
               complete ? "" : ", cut off,", " in ",
               absl::StrFormat("%.1f", ms), " ms, ", answer_bytes_, " bytes",
               current_->remark(), ", request ", request_id_),
           request_id_);
}

void HttpConnection::FinishExchange() {
  LogEnd(/*complete=*/true);
  current_->MarkDone();
  current_.reset();
  request_id_.clear();
  if (!keep_alive_) close_when_flushed_ = true;
  Wait(Waiting::kIdle);
  Flush();
  if (closed_) return;
  resume_.cancel();
  ProcessInput();
}

// ---- time and end -----------------------------------------------------------

void HttpConnection::Wait(Waiting what) {
  const auto& options = host_->options();
  waiting_ = what;
  waiting_since_ = Clock::now();
  std::chrono::milliseconds limit{0};
  switch (what) {
    case Waiting::kIdle:
      limit = std::chrono::milliseconds(options.idle_timeout_ms);
      break;
    case Waiting::kHeader:
      limit = std::chrono::milliseconds(options.header_timeout_ms);
      break;
    case Waiting::kBody:
      limit = std::chrono::milliseconds(options.body_timeout_ms);
      break;
    case Waiting::kLinger:
      limit = kLingerTime;
      break;
    case Waiting::kAnswer:
      deadline_ = Clock::time_point::max();
      return;
  }
  deadline_ = Clock::now() + limit;
}

void HttpConnection::CheckDeadline(Clock::time_point now) {
  if (closed_) return;
  if (write_waiting_ &&
      now - last_write_progress_ >
          std::chrono::milliseconds(host_->options().write_timeout_ms)) {
    LogInfo("http: a client takes nothing and is cut off, request ",
            request_id_);
    return Close();
  }
  if (now < deadline_) return;
  const bool started = parser_.has_value() || in_.size() > 0;
  if ((waiting_ == Waiting::kHeader && started) || waiting_ == Waiting::kBody) {
    if (!close_when_flushed_) {
      Reject(408, "the request did not arrive in time", "request_timeout");
    }
    return;
  }
  if (waiting_ == Waiting::kIdle && unsent() > 0) return;  // still sending
  Close();
}

std::optional<HttpConnection::Clock::time_point> HttpConnection::IdleSince(
    Clock::time_point now) const {
  const bool nothing = current_ == nullptr && !parser_ && in_.size() == 0 &&
                       unsent() == 0 && !closed_;
  if (!nothing) return std::nullopt;
  if (waiting_ == Waiting::kIdle) return waiting_since_;
  // The first request of a connection comes at once, or it is held for later.
  if (waiting_ == Waiting::kHeader && now - waiting_since_ > kFirstByteTime) {
    return waiting_since_;
  }
  return std::nullopt;
}

void HttpConnection::CloseWhenIdle() {
  keep_alive_ = false;
  if (current_ == nullptr && !parser_ && unsent() == 0 &&
      waiting_ != Waiting::kLinger) {
    Close();
  }
}

void HttpConnection::Close(bool notify_now) {
  if (closed_) return;
  closed_ = true;
  error_code ignored;
  socket_.close(ignored);
  resume_.cancel();
  parser_.reset();
  ReleaseCharge();
  if (current_ != nullptr) {
    LogEnd(/*complete=*/false);
    // Soon rather than now: the handler may be in the middle of a Write().
    std::function<void()> closed = current_->MarkClosed();
    current_.reset();
    if (closed && notify_now) {
      closed();
    } else if (closed) {
      thread_->Post(std::move(closed));
    }
  }
  host_->OnConnectionClosed(this);
}

}  // namespace moebius
