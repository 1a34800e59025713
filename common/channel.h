// The ordered control channel between the coordinator and its workers. Carries
// bytes; wire.h says what they mean.
//
// ZeroMQ ROUTER (Hub) and DEALER (Link) over an ipc:// socket in the group's
// private directory. A message to a worker that is not connected is an error,
// not a silent loss. Sizes and queue lengths are bounded.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "common/ids.h"

namespace moebius {

inline constexpr std::string_view kControlSocketName = "control.sock";
// Messages that may wait in one direction of one channel.
inline constexpr int kChannelQueueMessages = 256;

// The coordinator's end. One thread sends and receives; Wake() may be called
// from any thread.
class Hub {
 public:
  struct Message {
    Rank rank = 0;
    Incarnation incarnation;
    std::string bytes;
  };

  // Binds DIR/control.sock.
  static absl::StatusOr<std::unique_ptr<Hub>> Bind(const std::string& dir);
  virtual ~Hub() = default;

  // kUnavailable when that life of the worker is not connected, or its queue
  // is full.
  virtual absl::Status Send(Rank rank, Incarnation incarnation,
                            std::string_view bytes) = 0;

  // Waits for messages or a Wake(), up to timeout_ms (-1: without end), and
  // returns all that are there (none after a Wake or the time-out). A message
  // without bytes says that this life of the worker has connected.
  virtual absl::StatusOr<std::vector<Message>> Receive(int timeout_ms) = 0;

  // Makes a waiting or the next Receive return. Thread-safe.
  virtual void Wake() = 0;
};

// A worker's end. Not thread-safe.
class Link {
 public:
  // Connects to DIR/control.sock; the coordinator may bind later, and another
  // coordinator after it. Each hears that we have connected.
  static absl::StatusOr<std::unique_ptr<Link>> Connect(const std::string& dir,
                                                       Rank rank,
                                                       Incarnation incarnation);
  virtual ~Link() = default;

  // kUnavailable when no coordinator is connected, or the queue is full.
  virtual absl::Status Send(std::string_view bytes) = 0;

  // The next message, or nothing after timeout_ms (0: no wait, -1: no end).
  virtual absl::StatusOr<std::optional<std::string>> Receive(
      int timeout_ms) = 0;
};

}  // namespace moebius
