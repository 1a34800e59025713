// A socket that listens on an address of the configuration. Only for the files
// that know Asio.
#pragma once

#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>

#include "absl/status/statusor.h"
#include "common/config/config.h"

namespace moebius {

// On the first address that the host's name has; port 0 is any free one.
// Errors: kInvalidArgument for an address or port that is none, kUnavailable
// when it cannot be bound.
absl::StatusOr<boost::asio::ip::tcp::acceptor> ListenOn(
    boost::asio::io_context& context, const ListenAddress& address,
    int backlog);

}  // namespace moebius
