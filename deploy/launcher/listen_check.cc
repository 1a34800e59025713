#include "deploy/launcher/listen_check.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>

#include <cerrno>

#include "common/base/cat.h"
#include "common/base/errno_status.h"
#include "common/base/unique_fd.h"

namespace moebius {

std::string UrlOf(const std::string& host, int port) {
  if (host == "0.0.0.0") return Cat("http://127.0.0.1:", port);
  if (host == "::") return Cat("http://[::1]:", port);
  if (host.find(':') != std::string::npos) {
    return Cat("http://[", host, "]:", port);
  }
  return Cat("http://", host, ":", port);
}

absl::Status CheckPortIsFree(const ListenAddress& address, std::string_view key,
                             std::string_view flag) {
  sockaddr_storage storage = {};
  socklen_t size = 0;
  if (auto* v4 = reinterpret_cast<sockaddr_in*>(&storage);
      inet_pton(AF_INET, address.host.c_str(), &v4->sin_addr) == 1) {
    v4->sin_family = AF_INET;
    v4->sin_port = htons(static_cast<uint16_t>(address.port));
    size = sizeof *v4;
  } else if (auto* v6 = reinterpret_cast<sockaddr_in6*>(&storage);
             inet_pton(AF_INET6, address.host.c_str(), &v6->sin6_addr) == 1) {
    v6->sin6_family = AF_INET6;
    v6->sin6_port = htons(static_cast<uint16_t>(address.port));
    size = sizeof *v6;
  } else {
    return absl::InvalidArgumentError(
        Cat("'", address.host, "' is not an IPv4 or IPv6 address"));
  }
  UniqueFd probe(socket(storage.ss_family, SOCK_STREAM | SOCK_CLOEXEC, 0));
  if (!probe) return ErrnoStatus("socket");
  const int on = 1;
  setsockopt(probe.get(), SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
  if (bind(probe.get(), reinterpret_cast<sockaddr*>(&storage), size) == 0) {
    return absl::OkStatus();
  }
  const int error = errno;
  if (error == EADDRINUSE) {
    return absl::AlreadyExistsError(
        Cat("port ", address.port, " of ", address.host,
            " is in use by another process; choose another one (", flag,
            ", or key '", key, "')"));
  }
  if (error == EADDRNOTAVAIL) {
    return absl::InvalidArgumentError(
        Cat("this machine has no address ", address.host));
  }
  return absl::ErrnoToStatus(
      error, Cat("cannot listen on ", address.host, " port ", address.port));
}

}  // namespace moebius
