#include "common/vault/fd_socket.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

#include <cerrno>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "common/base/deadline.h"
#include "common/base/errno_status.h"
#include "common/base/status_macros.h"

namespace moebius {
namespace {

absl::StatusOr<sockaddr_un> AddressOf(const std::string& path) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path.empty() || path.size() >= sizeof(address.sun_path)) {
    return absl::InvalidArgumentError(absl::StrCat(
        "socket path '", path, "' has ", path.size(), " bytes; 1 to ",
        sizeof(address.sun_path) - 1, " are possible"));
  }
  std::memcpy(address.sun_path, path.data(), path.size());
  return address;
}

absl::StatusOr<UniqueFd> NewSocket(int flags) {
  UniqueFd fd(::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | flags, 0));
  if (!fd) return ErrnoStatus("socket");
  return fd;
}

bool PeerGone(int error) {
  return error == EPIPE || error == ECONNRESET || error == ENOTCONN ||
         error == ECONNREFUSED;
}

// Waits until `events` holds or the deadline has passed.
absl::Status PollFor(int socket, short events, const Deadline& deadline,
                     absl::string_view what) {
  for (;;) {
    pollfd entry{socket, events, 0};
    const int ready = ::poll(&entry, 1, deadline.left_ms());
    if (ready > 0) return absl::OkStatus();
    if (ready < 0 && errno != EINTR) return ErrnoStatus("poll");
    if (deadline.expired()) return absl::DeadlineExceededError(what);
  }
}

// Every descriptor a message brought, owned. Two fit into the control buffer of
// one because of its alignment, so there may be more than were asked for.
struct Attached {
  UniqueFd first;
  int count = 0;
};

Attached TakeDescriptors(msghdr* message) {
  Attached attached;
  for (cmsghdr* part = CMSG_FIRSTHDR(message); part != nullptr;
       part = CMSG_NXTHDR(message, part)) {
    if (part->cmsg_level != SOL_SOCKET || part->cmsg_type != SCM_RIGHTS) {
      continue;
    }
    const size_t count = (part->cmsg_len - CMSG_LEN(0)) / sizeof(int);
    for (size_t i = 0; i < count; ++i) {
      int fd = -1;
      std::memcpy(&fd, CMSG_DATA(part) + i * sizeof(int), sizeof(int));
      UniqueFd owned(fd);
      if (attached.count++ == 0) attached.first = std::move(owned);
    }
  }
  return attached;
}

}  // namespace

absl::StatusOr<UniqueFd> ListenUnix(const std::string& path, int backlog) {
  ASSIGN_OR_RETURN(const sockaddr_un address, AddressOf(path));
  ASSIGN_OR_RETURN(UniqueFd fd, NewSocket(SOCK_NONBLOCK));
  // The mode of the socket file is that of the descriptor at bind time, so
  // there is no moment at which others could connect.
  if (::fchmod(fd.get(), 0600) != 0) return ErrnoStatus("fchmod of a socket");
  if (::bind(fd.get(), reinterpret_cast<const sockaddr*>(&address),
             sizeof(address)) != 0) {
    if (errno == EADDRINUSE) {
      return absl::AlreadyExistsError(absl::StrCat(path, " exists already"));
    }
    return ErrnoStatus(absl::StrCat("bind ", path));
  }
  if (::listen(fd.get(), backlog) != 0) return ErrnoStatus("listen");
  return fd;
}

absl::StatusOr<UniqueFd> ConnectUnix(const std::string& path,
                                     absl::Duration timeout) {
  ASSIGN_OR_RETURN(const sockaddr_un address, AddressOf(path));
  ASSIGN_OR_RETURN(UniqueFd fd, NewSocket(0));
  // The send time-out bounds connect() too: with a full backlog it waits, and
  // poll cannot wait for that.
  const timeval limit = absl::ToTimeval(
      std::clamp(timeout, absl::Milliseconds(1), absl::Hours(1)));
  if (::setsockopt(fd.get(), SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof(limit))) {
    return ErrnoStatus("SO_SNDTIMEO");
  }
  while (::connect(fd.get(), reinterpret_cast<const sockaddr*>(&address),
                   sizeof(address)) != 0) {
    if (errno == EINTR) continue;
    if (errno == EAGAIN) {
      return absl::DeadlineExceededError(
          absl::StrCat("nobody accepts connections at ", path));
    }
    if (errno == ECONNREFUSED || errno == ENOENT) {
      return absl::UnavailableError(
          absl::StrCat("nobody listens at ", path, ": ", strerror(errno)));
    }
    return ErrnoStatus(absl::StrCat("connect ", path));
  }
  if (::fcntl(fd.get(), F_SETFL, O_NONBLOCK) != 0)
    return ErrnoStatus("O_NONBLOCK");
  return fd;
}

absl::StatusOr<UniqueFd> AcceptUnix(int listener) {
  UniqueFd fd(
      ::accept4(listener, nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
  if (fd) return fd;
  if (errno == EAGAIN || errno == EINTR || errno == ECONNABORTED) {
    return absl::UnavailableError("no connection waits");
  }
  return ErrnoStatus("accept");
}

absl::StatusOr<std::pair<UniqueFd, UniqueFd>> UnixPair() {
  int fds[2];
  if (::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0,
                   fds) != 0) {
    return ErrnoStatus("socketpair");
  }
  return std::pair(UniqueFd(fds[0]), UniqueFd(fds[1]));
}

absl::StatusOr<PeerCredentials> PeerOf(int socket) {
  ucred credentials{};
  socklen_t size = sizeof(credentials);
  if (::getsockopt(socket, SOL_SOCKET, SO_PEERCRED, &credentials, &size) != 0) {
    return ErrnoStatus("SO_PEERCRED");
  }
  return PeerCredentials{credentials.pid, credentials.uid};
}

absl::Status SendPacket(int socket, absl::Span<const std::byte> bytes,
                        int attach, absl::Duration timeout) {
  iovec part{const_cast<std::byte*>(bytes.data()), bytes.size()};
  msghdr message{};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))] = {};
  if (attach >= 0) {
    message.msg_control = control;
    message.msg_controllen = sizeof(control);
    cmsghdr* header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(sizeof(int));
    std::memcpy(CMSG_DATA(header), &attach, sizeof(int));
  }
  const Deadline deadline = Deadline::After(timeout);
  for (;;) {
    if (::sendmsg(socket, &message, MSG_NOSIGNAL | MSG_DONTWAIT) >= 0) {
      return absl::OkStatus();
    }
    if (errno == EINTR) continue;
    if (PeerGone(errno)) return absl::UnavailableError("the peer is gone");
    if (errno != EAGAIN) return ErrnoStatus("sendmsg");
    RETURN_IF_ERROR(
        PollFor(socket, POLLOUT, deadline, "the peer reads nothing"));
  }
}

absl::StatusOr<Packet> ReceivePacket(int socket, absl::Span<std::byte> buffer,
                                     absl::Duration timeout) {
  const Deadline deadline = Deadline::After(timeout);
  for (;;) {
    iovec part{buffer.data(), buffer.size()};
    alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))] = {};
    msghdr message{};
    message.msg_iov = &part;
    message.msg_iovlen = 1;
    message.msg_control = control;
    message.msg_controllen = sizeof(control);
    const ssize_t size =
        ::recvmsg(socket, &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
    if (size >= 0) {
      Attached attached = TakeDescriptors(&message);
      if ((message.msg_flags & MSG_CTRUNC) != 0 || attached.count > 1) {
        return absl::InvalidArgumentError(
            "a packet with more descriptors than one, or than fit");
      }
      if ((message.msg_flags & MSG_TRUNC) != 0) {
        return absl::InvalidArgumentError(
            absl::StrCat("a packet longer than ", buffer.size(), " bytes"));
      }
      if (size == 0) return absl::UnavailableError("the peer is gone");
      return Packet{static_cast<size_t>(size), std::move(attached.first)};
    }
    if (errno == EINTR) continue;
    if (PeerGone(errno)) return absl::UnavailableError("the peer is gone");
    if (errno != EAGAIN) return ErrnoStatus("recvmsg");
    RETURN_IF_ERROR(PollFor(socket, POLLIN, deadline, "nothing came in time"));
  }
}

}  // namespace moebius
