#include "deploy/launcher/control_ends.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>

#include <cerrno>
#include <utility>

#include "common/base/cat.h"
#include "common/base/errno_status.h"
#include "common/base/status_macros.h"

namespace moebius {
namespace {

// Connections that may wait for the next coordinator.
constexpr int kBacklog = 64;

union SocketAddress {
  sockaddr any;
  sockaddr_in v4;
  sockaddr_in6 v6;
};

absl::Status CannotListen(const ControlConfig& address) {
  const int error = errno;
  return absl::ErrnoToStatus(
      error, Cat("cannot listen for workers on ", address.host, " port ",
                 address.port, " (keys 'control.host', 'control.port')",
                 error == EADDRINUSE      ? "; choose another port, or 0"
                 : error == EADDRNOTAVAIL ? "; give an address of this machine"
                                          : ""));
}

// Sets the port of `address` to the one that it has got.
absl::StatusOr<UniqueFd> Listen(ControlConfig& address) {
  SocketAddress socket_address = {};
  socklen_t size = 0;
  const auto port = htons(static_cast<uint16_t>(address.port));
  if (inet_pton(AF_INET, address.host.c_str(), &socket_address.v4.sin_addr) ==
      1) {
    socket_address.v4.sin_family = AF_INET;
    socket_address.v4.sin_port = port;
    size = sizeof socket_address.v4;
  } else if (inet_pton(AF_INET6, address.host.c_str(),
                       &socket_address.v6.sin6_addr) == 1) {
    socket_address.v6.sin6_family = AF_INET6;
    socket_address.v6.sin6_port = port;
    size = sizeof socket_address.v6;
  } else {
    return absl::InvalidArgumentError(Cat("key 'control.host': '", address.host,
                                          "' is not an IPv4 or IPv6 address"));
  }
  UniqueFd listener(socket(socket_address.any.sa_family,
                           SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!listener) return ErrnoStatus("socket");
  const int on = 1;
  setsockopt(listener.get(), SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
  if (bind(listener.get(), &socket_address.any, size) != 0 ||
      listen(listener.get(), kBacklog) != 0 ||
      getsockname(listener.get(), &socket_address.any, &size) != 0) {
    return CannotListen(address);
  }
  address.port = ntohs(socket_address.any.sa_family == AF_INET
                           ? socket_address.v4.sin_port
                           : socket_address.v6.sin6_port);
  return listener;
}

absl::StatusOr<ControlEnds::End> EndOf(const ChannelKeys& keys) {
  ControlEnds::End end;
  ASSIGN_OR_RETURN(end.keys, WriteChannelKeys(keys));
  end.arguments = {"--control-keys", Cat(end.keys.get())};
  end.inherited = {end.keys.get()};
  return end;
}

}  // namespace

absl::StatusOr<ControlEnds> ControlEnds::Make(Config& config) {
  ControlEnds ends;
  ASSIGN_OR_RETURN(ends.hub_, MakeChannelKeyPair());
  for (Rank rank = 0; rank < config.workers.count; ++rank) {
    ASSIGN_OR_RETURN(ChannelKeyPair pair, MakeChannelKeyPair());
    ends.ranks_.push_back(std::move(pair));
  }
  ASSIGN_OR_RETURN(ends.listener_, Listen(config.control));
  return ends;
}

absl::StatusOr<ControlEnds::End> ControlEnds::ForCoordinator() const {
  ChannelKeys keys{hub_, {}};
  for (const ChannelKeyPair& rank : ranks_) {
    keys.peers.push_back(rank.public_key);
  }
  ASSIGN_OR_RETURN(End end, EndOf(keys));
  end.arguments.insert(end.arguments.end(),
                       {"--control-listener", Cat(listener_.get())});
  end.inherited.push_back(listener_.get());
  return end;
}

absl::StatusOr<ControlEnds::End> ControlEnds::ForWorker(Rank rank) const {
  return EndOf(ChannelKeys{ranks_.at(rank), {hub_.public_key}});
}

}  // namespace moebius
