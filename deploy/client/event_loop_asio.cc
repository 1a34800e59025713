#include "deploy/client/event_loop_asio.h"

#include <array>
#include <boost/asio/buffer.hpp>
#include <boost/asio/posix/stream_descriptor.hpp>
#include <boost/asio/steady_timer.hpp>
#include <chrono>
#include <csignal>
#include <utility>

#include "common/base/deadline.h"

namespace moebius {
namespace {

namespace asio = boost::asio;
using boost::system::error_code;

// Reads a descriptor to its end; keeps itself alive as long as it reads.
class Reader : public std::enable_shared_from_this<Reader> {
 public:
  Reader(asio::io_context& io, UniqueFd fd,
         std::function<void(std::string_view)> handler)
      : stream_(io, fd.release()), handler_(std::move(handler)) {}

  void Read() {
    stream_.async_read_some(
        asio::buffer(buffer_),
        [self = shared_from_this()](error_code error, size_t n) {
          if (error) {
            self->handler_("");
            return;
          }
          self->handler_(std::string_view(self->buffer_.data(), n));
          self->Read();
        });
  }

 private:
  asio::posix::stream_descriptor stream_;
  std::function<void(std::string_view)> handler_;
  std::array<char, 4096> buffer_;
};

}  // namespace

EventLoop::Impl::Impl() {
  signals.add(SIGINT);
  signals.add(SIGTERM);
  WaitForSignal();
}

void EventLoop::Impl::WaitForSignal() {
  signals.async_wait([this](error_code error, int) {
    if (error) return;
    interrupted = true;
    WaitForSignal();
  });
}

absl::Status EventLoop::Impl::Run(const std::function<bool()>& done,
                                  absl::Duration timeout, bool heed_signals) {
  const Deadline deadline = Deadline::After(timeout);
  while (!done()) {
    if (heed_signals && interrupted) {
      return absl::CancelledError("interrupted");
    }
    if (deadline.expired()) {
      return absl::DeadlineExceededError("nothing came within " +
                                         absl::FormatDuration(timeout));
    }
    io.restart();
    // All that is ready in one turn; the clock is read once for it.
    if (io.run_one_for(absl::ToChronoMilliseconds(std::min(
            deadline.left() + absl::Milliseconds(1), absl::Hours(1)))) > 0) {
      io.poll();
    }
  }
  return absl::OkStatus();
}

EventLoop::EventLoop() : impl_(std::make_unique<Impl>()) {}

EventLoop::~EventLoop() = default;

absl::Status EventLoop::RunUntil(const std::function<bool()>& done,
                                 absl::Duration timeout) {
  return impl_->Run(done, timeout, true);
}

absl::Status EventLoop::FinishUntil(const std::function<bool()>& done,
                                    absl::Duration timeout) {
  return impl_->Run(done, timeout, false);
}

absl::Status EventLoop::Poll() {
  impl_->io.restart();
  impl_->io.poll();
  if (impl_->interrupted) return absl::CancelledError("interrupted");
  return absl::OkStatus();
}

void EventLoop::After(absl::Duration delay, std::function<void()> handler) {
  auto timer = std::make_shared<asio::steady_timer>(impl_->io);
  timer->expires_after(absl::ToChronoNanoseconds(delay));
  timer->async_wait([timer, handler = std::move(handler)](error_code error) {
    if (!error) handler();
  });
}

void EventLoop::ReadAll(UniqueFd fd,
                        std::function<void(std::string_view)> handler) {
  std::make_shared<Reader>(impl_->io, std::move(fd), std::move(handler))
      ->Read();
}

}  // namespace moebius
