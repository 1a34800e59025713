#include <array>
#include <boost/asio/as_tuple.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <boost/asio/write.hpp>
#include <chrono>
#include <latch>
#include <optional>
#include <utility>

#include "common/base/status_macros.h"
#include "coordinator/http/io_thread_asio.h"
#include "coordinator/http/line_server.h"
#include "coordinator/http/listen_asio.h"

namespace moebius {
namespace {

namespace asio = boost::asio;
using tcp = asio::ip::tcp;
using boost::system::error_code;

constexpr auto kTuple = asio::as_tuple(asio::use_awaitable);
constexpr std::chrono::seconds kPatience{1};
constexpr std::chrono::milliseconds kAcceptRetry{50};

}  // namespace

class LineServer::Core : public std::enable_shared_from_this<Core> {
 public:
  Core(IoThreads& threads, std::function<std::string()> line)
      : threads_(threads), line_(std::move(line)) {}

  absl::Status Listen(const ListenAddress& address) {
    asio::io_context& context = threads_.at(0)->context();
    ASSIGN_OR_RETURN(acceptor_, ListenOn(context, address, kMaxConnections));
    port_ = acceptor_->local_endpoint().port();
    asio::co_spawn(context, AcceptLoop(shared_from_this()), asio::detached);
    return absl::OkStatus();
  }

  int port() const { return port_; }

  void Stop() {
    std::latch done(1);
    const bool posted = threads_.Post(0, [&] {
      stopped_ = true;
      acceptor_.reset();
      done.count_down();
    });
    if (posted) done.wait();
  }

 private:
  static asio::awaitable<void> AcceptLoop(std::shared_ptr<Core> self) {
    while (!self->stopped_) {
      tcp::socket socket(self->threads_.at(0)->context());
      const auto [error] =
          co_await self->acceptor_->async_accept(socket, kTuple);
      if (self->stopped_) co_return;
      if (error) {
        // Descriptors are short, most likely.
        asio::steady_timer retry(self->threads_.at(0)->context(), kAcceptRetry);
        co_await retry.async_wait(kTuple);
        continue;
      }
      if (self->num_open_ >= kMaxConnections) continue;
      ++self->num_open_;
      asio::co_spawn(
          self->threads_.at(0)->context(),
          Tell(self, std::make_shared<tcp::socket>(std::move(socket))),
          asio::detached);
    }
  }

  static asio::awaitable<void> Tell(std::shared_ptr<Core> self,
                                    std::shared_ptr<tcp::socket> socket) {
    const std::string line = self->line_();
    asio::steady_timer timer(self->threads_.at(0)->context(), kPatience);
    // It may have expired, and be called, behind the end of this.
    timer.async_wait([socket](error_code over) {
      error_code ignored;
      if (!over) socket->close(ignored);
    });
    co_await asio::async_write(*socket, asio::buffer(line), kTuple);
    // To close with something unread would take the line back.
    error_code ignored;
    socket->shutdown(tcp::socket::shutdown_send, ignored);
    std::array<char, 256> thrown_away;
    while (socket->is_open()) {
      const auto [error, size] =
          co_await socket->async_read_some(asio::buffer(thrown_away), kTuple);
      if (error) break;
    }
    --self->num_open_;
  }

  IoThreads& threads_;
  const std::function<std::string()> line_;
  int port_ = 0;
  // On the first thread only.
  std::optional<tcp::acceptor> acceptor_;
  bool stopped_ = false;
  int num_open_ = 0;
};

absl::StatusOr<std::unique_ptr<LineServer>> LineServer::Start(
    const ListenAddress& listen, IoThreads& threads,
    std::function<std::string()> line) {
  auto core = std::make_shared<Core>(threads, std::move(line));
  if (absl::Status status = core->Listen(listen); !status.ok()) return status;
  return std::unique_ptr<LineServer>(new LineServer(std::move(core)));
}

LineServer::~LineServer() { Stop(); }

int LineServer::port() const { return core_->port(); }
void LineServer::Stop() { core_->Stop(); }

}  // namespace moebius
