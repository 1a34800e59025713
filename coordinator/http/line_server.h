// Says one line to whoever connects, as HAProxy's agent-check wants it.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "common/config/config.h"
#include "coordinator/http/io_threads.h"

namespace moebius {

// LineServer
//
// A connection is told `line()`, and closed when its peer has closed or a
// second is over; what the peer says is thrown away. At most kMaxConnections
// at a time, others are closed at once.
//
// Threading: `line` is called on the first of `threads`. Stop() is called from
// none of them.
class LineServer {
 public:
  static constexpr int kMaxConnections = 64;

  // `threads` outlives it. kInvalidArgument for an address that is none,
  // kUnavailable when it cannot be bound.
  static absl::StatusOr<std::unique_ptr<LineServer>> Start(
      const ListenAddress& listen, IoThreads& threads,
      std::function<std::string()> line);
  ~LineServer();

  int port() const;
  // No further call of `line`.
  void Stop();

  class Core;

 private:
  explicit LineServer(std::shared_ptr<Core> core) : core_(std::move(core)) {}
  std::shared_ptr<Core> core_;
};

}  // namespace moebius
