// Unix sockets that carry whole packets, at most one descriptor with each
// (SOCK_SEQPACKET, SCM_RIGHTS), and tell who is at the other end (SO_PEERCRED).
// Functions over plain descriptors; no state, so no threading rules: the kernel
// keeps packets whole, even if several processes send at the same time.
#pragma once

#include <sys/types.h>

#include <cstddef>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "common/base/unique_fd.h"

namespace moebius {

// The process that connected, as the kernel noted it then.
struct PeerCredentials {
  pid_t pid = 0;
  uid_t uid = 0;
};

// One received packet.
struct Packet {
  size_t size_bytes = 0;
  UniqueFd attached;  // close-on-exec; empty when none came along
};

// Listens at `path` with mode 0600, not blocking, close-on-exec.
// kAlreadyExists when the path is taken, kInvalidArgument when it is longer
// than a socket address can hold (107 bytes).
absl::StatusOr<UniqueFd> ListenUnix(const std::string& path, int backlog);

// kUnavailable when nobody listens there, kDeadlineExceeded when the listener
// does not make room in time.
absl::StatusOr<UniqueFd> ConnectUnix(const std::string& path,
                                     absl::Duration timeout);

// Next waiting connection, not blocking; kUnavailable when there is none.
absl::StatusOr<UniqueFd> AcceptUnix(int listener);

// Both ends of a connection within this process and its children.
absl::StatusOr<std::pair<UniqueFd, UniqueFd>> UnixPair();

absl::StatusOr<PeerCredentials> PeerOf(int socket);

// Sends one packet whole, with a duplicate of `attach` when it is not -1.
// Never raises SIGPIPE. kUnavailable when the peer is gone, kDeadlineExceeded
// when its buffer stays full (a timeout of zero never waits).
absl::Status SendPacket(int socket, absl::Span<const std::byte> bytes,
                        int attach, absl::Duration timeout);

// Receives one packet into `buffer`.
//   kDeadlineExceeded  nothing came (a timeout of zero never waits)
//   kUnavailable       the peer is gone (an empty packet counts as that)
//   kInvalidArgument   longer than `buffer`, or more than one descriptor, or
//                      no room for it in our table; the packet is consumed and
//                      every descriptor that came with it is closed
absl::StatusOr<Packet> ReceivePacket(int socket, absl::Span<std::byte> buffer,
                                     absl::Duration timeout);

}  // namespace moebius
