// Who may connect to the control channel: asked of each connection before
// anything that it sends is looked at. Only for channel_zmq.cc.
#pragma once

#include <chrono>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <thread>
#include <zmq.hpp>

#include "absl/status/statusor.h"
#include "common/channel.h"
#include "common/ids.h"

namespace moebius {

// ChannelDoor
//
// Answers ZeroMQ's questions about new connections (ZAP, ZeroMQ RFC 27). The
// process at the other end is the one that the kernel saw connecting
// (SO_PEERCRED): it must have our uid and speak for a rank. A connection that
// is refused never has an identity, so it can neither be heard under a
// worker's nor take one over. With each message of one that is let in comes
// the rank, as its property "User-Id".
//
// Threading: a thread of its own.
class ChannelDoor {
 public:
  // What a socket that this is to guard sets as its ZMQ_ZAP_DOMAIN; with that
  // set nobody is let in while there is no door.
  static constexpr char kDomain[] = "moebius";

  // Throws zmq::error_t. Before a socket of `context` is bound.
  ChannelDoor(zmq::context_t& context, WhoIs who_is);
  // REQUIRES: the context has been shut down.
  ~ChannelDoor();
  ChannelDoor(const ChannelDoor&) = delete;
  ChannelDoor& operator=(const ChannelDoor&) = delete;

  // The rank of whoever has this address, which ZeroMQ gives as
  // "localhost:UID:GID:PID"; nothing for a refusal.
  static absl::StatusOr<std::optional<Rank>> Judge(std::string_view address,
                                                   const WhoIs& who_is);

 private:
  struct Verdict {
    std::string_view code;  // 200: let in; 300: not now; 400: refused
    std::string rank;
  };

  void Serve();
  void AnswerOne();
  Verdict JudgeAndLog(std::string_view address);

  zmq::socket_t socket_;
  const WhoIs who_is_;
  uint64_t num_refused_ = 0;
  std::chrono::steady_clock::time_point last_logged_;
  std::thread thread_;  // last: it uses all of the above
};

}  // namespace moebius
