// Who may connect to the control channel: asked of each connection before
// anything that it sends is looked at. Only for channel_zmq.cc.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <thread>
#include <vector>
#include <zmq.hpp>

#include "absl/status/statusor.h"
#include "common/base/ids.h"
#include "common/channel/channel.h"

namespace moebius {

// ChannelDoor
//
// Answers ZeroMQ's questions about new connections (ZAP, ZeroMQ RFC 27). A
// connection that is refused never has an identity, so it can neither be heard
// under a worker's nor take one over. With each message of one that is let in
// comes the rank, as its property "User-Id".
//
// Threading: a thread of its own.
class ChannelDoor {
 public:
  // What ZeroMQ tells of who wants in.
  struct Question {
    std::string address;
    std::string mechanism;   // "NULL" or "CURVE"
    std::string credential;  // CURVE: the public key, whose secret it has
  };
  // The rank that it speaks for; nothing for a refusal, an error for "not now".
  using Judge = std::function<absl::StatusOr<std::optional<Rank>>(
      const Question& question)>;

  // What a socket that this is to guard sets as its ZMQ_ZAP_DOMAIN; with that
  // set nobody is let in while there is no door.
  static constexpr char kDomain[] = "moebius";

  // Throws zmq::error_t. Before a socket of `context` is bound.
  ChannelDoor(zmq::context_t& context, Judge judge);
  // REQUIRES: the context has been shut down.
  ~ChannelDoor();
  ChannelDoor(const ChannelDoor&) = delete;
  ChannelDoor& operator=(const ChannelDoor&) = delete;

  // For a Unix socket. The process at the other end is the one that the kernel
  // saw connecting (SO_PEERCRED): it must have our uid and speak for a rank.
  // Its address reads "localhost:UID:GID:PID".
  static absl::StatusOr<std::optional<Rank>> JudgeProcess(
      const Question& question, const WhoIs& who_is);

  // For TCP. A peer with the secret of a rank's key speaks for it; `keys` are
  // the bytes of the public ones, by rank.
  static std::optional<Rank> JudgeKey(const Question& question,
                                      const std::vector<std::string>& keys);

 private:
  struct Verdict {
    std::string_view code;  // 200: let in; 300: not now; 400: refused
    std::string rank;
  };

  void Serve();
  void AnswerOne();
  Verdict JudgeAndLog(const Question& question);

  zmq::socket_t socket_;
  const Judge judge_;
  uint64_t num_refused_ = 0;
  std::chrono::steady_clock::time_point last_logged_;
  std::thread thread_;  // last: it uses all of the above
};

}  // namespace moebius
