// The ordered control channel between the coordinator and its workers. Carries
// bytes; wire.h says what they mean.
//
// ZeroMQ ROUTER (Hub) and DEALER (Link), over a Unix socket in the group's
// private directory or over TCP. A message to a worker that is not connected is
// an error, not a silent loss. Sizes and queue lengths are bounded.
//
// Trust, Unix socket: the directory (mode 0700) keeps other users out, and so
// does the socket (ZMQ_IPC_FILTER_UID, mode 0600). Of our own user's processes
// only those get in that the launcher started as workers.
// Trust, TCP: both ends show by their keys who they are (channel_keys.h), and
// what they say is encrypted. A peer without a key is refused, and has no
// identity. A peer that connects and says nothing is hung up on after
// kLinkTimeoutMs. Either way each worker is heard for its own rank alone.
// Processes of one user could still harm one another in other ways (ptrace,
// signals); and a worker is not kept from taking over another's connection with
// its identity.
//
// Loss: over a Unix socket none but with an end's death. Over TCP what was on
// its way is lost with a connection that breaks, and one over which nothing has
// come for kLinkTimeoutMs counts as broken. A link connects again by itself;
// the hub is told, as of every connection.
#pragma once

#include <sys/types.h>

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "common/base/ids.h"
#include "common/base/unique_fd.h"
#include "common/channel/channel_keys.h"

namespace moebius {

inline constexpr std::string_view kControlSocketName = "control.sock";
// Messages that may wait in one direction of one channel.
inline constexpr int kChannelQueueMessages = 256;
// Over TCP: a connection over which nothing has come for so long is broken,
// though neither end closed it. Each end sends the other a heartbeat well
// before that.
inline constexpr int kLinkTimeoutMs = 3000;

// The rank that process `pid` speaks for; nothing if it is no worker of the
// group. Called on a thread of the hub's, one call at a time; may wait for a
// moment. An error keeps the process waiting: it may try again.
using WhoIs = std::function<absl::StatusOr<std::optional<Rank>>(pid_t pid)>;

// The coordinator's end. One thread sends and receives; Wake() may be called
// from any thread.
class Hub {
 public:
  struct Message {
    Rank rank = 0;
    Incarnation incarnation;
    std::string bytes;
  };

  // Binds DIR/control.sock. `who_is` is asked about each connection; without
  // one every process of our user is let in, for tests.
  static absl::StatusOr<std::unique_ptr<Hub>> Bind(const std::string& dir,
                                                   WhoIs who_is);
  // The same over TCP. `listener` is a socket that listens already, so that the
  // port stays the group's while no coordinator runs.
  static absl::StatusOr<std::unique_ptr<Hub>> BindTcp(UniqueFd listener,
                                                      const ChannelKeys& keys);
  virtual ~Hub() = default;

  // kUnavailable when that incarnation of the worker is not connected, or its
  // queue is full.
  virtual absl::Status Send(Rank rank, Incarnation incarnation,
                            std::string_view bytes) = 0;

  // Waits for messages or a Wake(), up to timeout_ms (-1: without end), and
  // returns all that are there (none after a Wake or the time-out). A message
  // without bytes says that this incarnation has connected.
  virtual absl::StatusOr<std::vector<Message>> Receive(int timeout_ms) = 0;

  // Makes a waiting or the next Receive return. Thread-safe.
  virtual void Wake() = 0;

  // Binds again if somebody has removed the socket's file, without which no
  // later incarnation of a worker would find us. True: it was removed.
  virtual absl::StatusOr<bool> Restore() { return false; }
};

// A worker's end. Not thread-safe.
class Link {
 public:
  // Connects to DIR/control.sock; the coordinator may bind later, and another
  // coordinator after it. Each hears that we have connected.
  static absl::StatusOr<std::unique_ptr<Link>> Connect(const std::string& dir,
                                                       Rank rank,
                                                       Incarnation incarnation);
  // The same over TCP, to an address of the hub's (IPv4 or IPv6).
  static absl::StatusOr<std::unique_ptr<Link>> ConnectTcp(
      const std::string& host, int port, const ChannelKeys& keys, Rank rank,
      Incarnation incarnation);
  virtual ~Link() = default;

  // kUnavailable when no coordinator is connected, or the queue is full.
  virtual absl::Status Send(std::string_view bytes) = 0;

  // The next message, or nothing after timeout_ms (0: no wait, -1: no end), or
  // once `wake_fd` is readable (-1: none is looked at).
  virtual absl::StatusOr<std::optional<std::string>> Receive(
      int timeout_ms, int wake_fd = -1) = 0;
};

}  // namespace moebius
