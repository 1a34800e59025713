// What is behind EventLoop, for the files that know Asio.
#pragma once

#include <boost/asio/io_context.hpp>
#include <boost/asio/signal_set.hpp>

#include "deploy/client/event_loop.h"

namespace moebius {

struct EventLoop::Impl {
  boost::asio::io_context io{1};
  boost::asio::signal_set signals{io};
  bool interrupted = false;

  Impl();
  absl::Status Run(const std::function<bool()>& done, absl::Duration timeout,
                   bool heed_signals);

 private:
  void WaitForSignal();
};

}  // namespace moebius
