#include <algorithm>
#include <atomic>
#include <boost/asio/as_tuple.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <chrono>
#include <ctime>
#include <latch>
#include <string>
#include <unordered_set>
#include <utility>
#include <vector>

#include "common/base/cat.h"
#include "common/base/logging.h"
#include "common/base/status_macros.h"
#include "coordinator/http/api_error.h"
#include "coordinator/http/http_connection_beast.h"
#include "coordinator/http/http_server.h"
#include "coordinator/http/listen_asio.h"
#include "coordinator/http/random_ids.h"

namespace moebius {
namespace {

namespace asio = boost::asio;
using tcp = asio::ip::tcp;
using boost::system::error_code;

constexpr auto kTuple = asio::as_tuple(asio::use_awaitable);
constexpr int kBacklog = 4096;
constexpr std::chrono::milliseconds kAcceptRetry{50};
constexpr int kMaxSweepMs = 250;
constexpr int kMinSweepMs = 5;
int SweepMs(const HttpServerOptions& options) {
  const int shortest =
      std::min({options.header_timeout_ms, options.body_timeout_ms,
                options.idle_timeout_ms, options.write_timeout_ms});
  return std::clamp(shortest / 4, kMinSweepMs, kMaxSweepMs);
}

}  // namespace

// What the server has on one io thread: its connections and their timer.
class HttpThreadHost final
    : public HttpConnectionHost,
      public std::enable_shared_from_this<HttpThreadHost> {
 public:
  HttpThreadHost(const HttpServerOptions& options, HttpHandler& handler,
                 std::shared_ptr<IoThread> thread, int index,
                 std::shared_ptr<std::atomic<int>> num_connections,
                 std::shared_ptr<std::atomic<size_t>> incomplete_bytes)
      : options_(options),
        handler_(handler),
        thread_(std::move(thread)),
        index_(index),
        num_connections_(std::move(num_connections)),
        incomplete_bytes_(std::move(incomplete_bytes)) {}

  const HttpServerOptions& options() const override { return options_; }
  HttpHandler& handler() override { return handler_; }
  bool draining() const override { return draining_; }

  std::string_view date() override {
    const time_t now = time(nullptr);
    if (now != date_time_) {
      date_time_ = now;
      tm utc{};
      gmtime_r(&now, &utc);
      char text[40];
      date_.assign(text, strftime(text, sizeof(text),
                                  "%a, %d %b %Y %H:%M:%S GMT", &utc));
    }
    return date_;
  }

  std::string NewRequestId() override { return request_ids_.Next(); }

  void OnConnectionClosed(HttpConnection* connection) override {
    connections_.erase(connection);
    num_connections_->fetch_sub(1, std::memory_order_relaxed);
  }

  bool ChargeIncomplete(std::ptrdiff_t delta) override {
    // A negative delta wraps around, as does the sum: it is exact.
    const auto added = static_cast<size_t>(delta);
    return incomplete_bytes_->fetch_add(added, std::memory_order_relaxed) +
               added <=
           options_.max_incomplete_bytes;
  }

  void Add(tcp::socket socket) {
    if (stopped_) {
      num_connections_->fetch_sub(1, std::memory_order_relaxed);
      return;
    }
    auto connection = std::make_shared<HttpConnection>(
        std::move(socket), shared_from_this(), thread_, index_);
    connections_.insert(connection.get());
    connection->Start();
    if (!sweeping_) {
      sweeping_ = true;
      Sweep();
    }
  }

  // Since when the connection that has waited longest for a request does so;
  // the end of time when none waits.
  HttpConnection::Clock::time_point IdlestSince() const {
    return Idlest().since;
  }
  // Closes it, if there is one.
  void CloseIdlest() {
    if (HttpConnection* idlest = Idlest().connection) idlest->Close();
  }

  void StopAccepting() {
    draining_ = true;
    for (HttpConnection* connection : Snapshot()) connection->CloseWhenIdle();
  }

  void Stop() {
    stopped_ = true;
    draining_ = true;
    for (HttpConnection* connection : Snapshot()) {
      connection->Close(/*notify_now=*/true);
    }
    sweep_timer_.reset();
  }

 private:
  struct Idle {
    HttpConnection* connection = nullptr;
    HttpConnection::Clock::time_point since =
        HttpConnection::Clock::time_point::max();
  };
  Idle Idlest() const {
    const auto now = HttpConnection::Clock::now();
    Idle idlest;
    for (HttpConnection* connection : connections_) {
      const auto since = connection->IdleSince(now);
      if (since.has_value() && *since < idlest.since) {
        idlest = {connection, *since};
      }
    }
    return idlest;
  }

  // Closing takes a connection out of the set. The read loops keep the
  // connections alive until the event loop runs again.
  std::vector<HttpConnection*> Snapshot() const {
    return {connections_.begin(), connections_.end()};
  }

  void Sweep() {
    if (stopped_) return;
    const auto now = HttpConnection::Clock::now();
    for (HttpConnection* connection : Snapshot()) {
      connection->CheckDeadline(now);
    }
    if (connections_.empty()) {
      sweeping_ = false;
      return;
    }
    if (!sweep_timer_) sweep_timer_.emplace(thread_->context());
    sweep_timer_->expires_after(std::chrono::milliseconds(SweepMs(options_)));
    sweep_timer_->async_wait([self = shared_from_this()](error_code error) {
      if (!error) self->Sweep();
    });
  }

  const HttpServerOptions options_;
  HttpHandler& handler_;
  const std::shared_ptr<IoThread> thread_;
  const int index_;
  const std::shared_ptr<std::atomic<int>> num_connections_;
  const std::shared_ptr<std::atomic<size_t>> incomplete_bytes_;

  // On the thread only.
  std::unordered_set<HttpConnection*> connections_;
  std::optional<asio::steady_timer> sweep_timer_;
  bool sweeping_ = false;
  bool draining_ = false;
  bool stopped_ = false;
  RandomIds request_ids_;
  time_t date_time_ = 0;
  std::string date_;
};

class HttpServer::Core : public std::enable_shared_from_this<Core> {
 public:
  Core(const HttpServerOptions& options, IoThreads& threads,
       HttpHandler& handler)
      : options_(options),
        threads_(threads),
        num_connections_(std::make_shared<std::atomic<int>>(0)) {
    const auto incomplete_bytes = std::make_shared<std::atomic<size_t>>(0);
    for (int i = 0; i < threads.size(); ++i) {
      hosts_.push_back(
          std::make_shared<HttpThreadHost>(options, handler, threads.at(i), i,
                                           num_connections_, incomplete_bytes));
    }
  }

  absl::Status Listen() {
    asio::io_context& context = threads_.at(0)->context();
    ASSIGN_OR_RETURN(acceptor_, ListenOn(context, options_.listen, kBacklog));
    port_ = acceptor_->local_endpoint().port();
    asio::co_spawn(context, AcceptLoop(shared_from_this()), asio::detached);
    return absl::OkStatus();
  }

  int port() const { return port_; }
  int num_connections() const {
    return num_connections_->load(std::memory_order_relaxed);
  }

  void StopAccepting() {
    threads_.Post(0, [self = shared_from_this()] { self->CloseAcceptor(); });
    for (int i = 0; i < threads_.size(); ++i) {
      threads_.Post(i, [host = hosts_[i]] { host->StopAccepting(); });
    }
  }

  void Stop() {
    OnEveryThread([this](int i) {
      if (i == 0) CloseAcceptor();
    });
    // Sockets accepted before that are on their way to their threads, ahead
    // of this.
    OnEveryThread([this](int i) { hosts_[i]->Stop(); });
  }

 private:
  // Runs `task` on every thread and waits for all.
  template <typename Task>
  void OnEveryThread(Task task) {
    std::latch done(threads_.size());
    for (int i = 0; i < threads_.size(); ++i) {
      if (!threads_.Post(i, [&, i] {
            task(i);
            done.count_down();
          })) {
        done.count_down();
      }
    }
    done.wait();
  }

  void CloseAcceptor() {
    closed_ = true;
    retry_.reset();
    acceptor_.reset();
  }

  using TimePoint = HttpConnection::Clock::time_point;
  static asio::awaitable<TimePoint> IdlestSince(
      std::shared_ptr<HttpThreadHost> host) {
    co_return host->IdlestSince();
  }
  static asio::awaitable<void> CloseIdlest(
      std::shared_ptr<HttpThreadHost> host) {
    host->CloseIdlest();
    co_return;
  }

  // Closes the connection that has waited longest for a request, on whichever
  // thread; false when none waits.
  static asio::awaitable<bool> MakeRoom(std::shared_ptr<Core> self) {
    const auto on = [&self](int i) -> asio::io_context& {
      return self->threads_.at(i)->context();
    };
    int idlest = 0;
    TimePoint since = TimePoint::max();
    for (int i = 0; i < self->threads_.size() && !self->closed_; ++i) {
      const TimePoint of_thread = co_await asio::co_spawn(
          on(i), IdlestSince(self->hosts_[i]), asio::use_awaitable);
      if (of_thread >= since) continue;
      idlest = i;
      since = of_thread;
    }
    if (self->closed_ || since == TimePoint::max()) co_return false;
    co_await asio::co_spawn(on(idlest), CloseIdlest(self->hosts_[idlest]),
                            asio::use_awaitable);
    co_return true;
  }

  // After an accept that failed: makes room if that may help, or else waits.
  static asio::awaitable<void> RecoverFrom(std::shared_ptr<Core> self,
                                           error_code error) {
    const bool short_of_descriptors =
        error == asio::error::no_descriptors ||
        error == boost::system::errc::too_many_files_open_in_system;
    if (!std::exchange(self->accept_failed_, true)) {
      LogWarn("http: accept failed: ", error.message(),
              short_of_descriptors ? "; connections without a request are "
                                     "closed for new ones, which wait"
                                   : "");
    }
    if (short_of_descriptors && co_await MakeRoom(self)) co_return;
    if (self->closed_) co_return;
    self->retry_.emplace(self->threads_.at(0)->context());
    self->retry_->expires_after(kAcceptRetry);
    co_await self->retry_->async_wait(kTuple);
  }

  static asio::awaitable<void> AcceptLoop(std::shared_ptr<Core> self) {
    int next = 0;
    while (!self->closed_) {
      tcp::socket socket(self->threads_.at(next)->context());
      const auto [error] =
          co_await self->acceptor_->async_accept(socket, kTuple);
      if (self->closed_) break;
      if (error) {
        if (error == asio::error::operation_aborted) break;
        co_await RecoverFrom(self, error);
        continue;
      }
      self->accept_failed_ = false;
      const int most = self->options_.max_connections;
      if (self->num_connections() >= most) co_await MakeRoom(self);
      if (self->closed_) break;
      if (self->num_connections() >= most) {
        TurnAway(socket, self->hosts_[0]->date());
        continue;
      }
      self->num_connections_->fetch_add(1, std::memory_order_relaxed);
      // std::function wants copies; a socket has one owner.
      auto owned = std::make_shared<tcp::socket>(std::move(socket));
      self->threads_.Post(next, [host = self->hosts_[next], owned] {
        host->Add(std::move(*owned));
      });
      next = (next + 1) % self->threads_.size();
    }
  }

  // Says why, as far as that goes without waiting, and closes.
  static void TurnAway(tcp::socket& socket, std::string_view date) {
    ApiError error;
    error.http_status = 503;
    error.type = "service_unavailable_error";
    error.code = "too_many_connections";
    error.message = "too many connections";
    const std::string body = ErrorBody(error);
    const std::string text =
        Cat("HTTP/1.1 503 Service Unavailable\r\nContent-Type: "
            "application/json\r\nDate: ",
            date, "\r\nContent-Length: ", body.size(),
            "\r\nRetry-After: 1\r\nConnection: close\r\n\r\n", body);
    error_code ignored;
    socket.non_blocking(true, ignored);
    socket.write_some(asio::buffer(text), ignored);
    socket.shutdown(tcp::socket::shutdown_send, ignored);
  }

  const HttpServerOptions options_;
  IoThreads& threads_;
  const std::shared_ptr<std::atomic<int>> num_connections_;
  std::vector<std::shared_ptr<HttpThreadHost>> hosts_;
  int port_ = 0;

  // On the first thread only.
  std::optional<tcp::acceptor> acceptor_;
  std::optional<asio::steady_timer> retry_;
  bool closed_ = false;
  bool accept_failed_ = false;  // the last one; said once
};

absl::StatusOr<std::unique_ptr<HttpServer>> HttpServer::Start(
    const HttpServerOptions& options, IoThreads& threads,
    HttpHandler& handler) {
  auto core = std::make_shared<Core>(options, threads, handler);
  if (absl::Status status = core->Listen(); !status.ok()) return status;
  return std::unique_ptr<HttpServer>(new HttpServer(std::move(core)));
}

HttpServer::~HttpServer() { Stop(); }

int HttpServer::port() const { return core_->port(); }
int HttpServer::num_connections() const { return core_->num_connections(); }
void HttpServer::StopAccepting() { core_->StopAccepting(); }
void HttpServer::Stop() { core_->Stop(); }

}  // namespace moebius
