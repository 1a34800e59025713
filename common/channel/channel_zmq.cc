// ZeroMQ body of channel.h.
#include <sys/eventfd.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>
#include <memory>
#include <utility>
#include <zmq.hpp>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "common/base/status_macros.h"
#include "common/channel/channel.h"
#include "common/channel/channel_door_zmq.h"
#include "common/channel/channel_keys.h"
#include "common/wire/wire.h"

namespace moebius {
namespace {

constexpr int kLingerMs = 200;  // of unsent messages at the end
// Messages taken by one Receive, so that a flood cannot keep its caller.
constexpr int kMaxBatch = 1024;
// What encryption adds to a message: more than it needs.
constexpr size_t kCurveBytes = 64;

absl::Status ZmqError(absl::string_view what, const zmq::error_t& error) {
  return absl::UnavailableError(absl::StrCat(what, ": ", error.what()));
}

std::string Endpoint(const std::string& dir) {
  return absl::StrCat("ipc://", dir, "/", std::string(kControlSocketName));
}

std::string TcpEndpoint(const std::string& host, int port) {
  const bool v6 = host.find(':') != std::string::npos;
  return absl::StrCat("tcp://", v6 ? "[" : "", host, v6 ? "]:" : ":", port);
}

// Identity of one incarnation of a worker: "rank.incarnation".
std::string Identity(Rank rank, Incarnation incarnation) {
  return absl::StrCat(rank, ".", incarnation.value);
}

// False for anything that Identity() does not make.
bool ParseIdentity(std::string_view identity, Rank& rank,
                   Incarnation& incarnation) {
  const std::vector<absl::string_view> parts =
      absl::StrSplit(absl::string_view(identity.data(), identity.size()), '.');
  return parts.size() == 2 && absl::SimpleAtoi(parts[0], &rank) && rank >= 0 &&
         rank < kMaxRanks && absl::SimpleAtoi(parts[1], &incarnation.value) &&
         Identity(rank, incarnation) == identity;
}

void SetCommonOptions(zmq::socket_t& socket) {
  socket.set(zmq::sockopt::linger, kLingerMs);
  socket.set(zmq::sockopt::sndhwm, kChannelQueueMessages);
  socket.set(zmq::sockopt::rcvhwm, kChannelQueueMessages);
  socket.set(zmq::sockopt::maxmsgsize,
             static_cast<int64_t>(wire::kMaxMessageBytes));
}

// Of both ends over TCP.
void SetTcpOptions(zmq::socket_t& socket, const ChannelKeyPair& own) {
  socket.set(zmq::sockopt::maxmsgsize,
             static_cast<int64_t>(wire::kMaxMessageBytes + kCurveBytes));
  socket.set(zmq::sockopt::curve_secretkey, own.secret_key);
  socket.set(zmq::sockopt::curve_publickey, own.public_key);
  socket.set(zmq::sockopt::ipv6, true);  // as well as IPv4
  socket.set(zmq::sockopt::heartbeat_ivl, kLinkTimeoutMs / 6);
  socket.set(zmq::sockopt::heartbeat_timeout, kLinkTimeoutMs);
  socket.set(zmq::sockopt::heartbeat_ttl, kLinkTimeoutMs);
  // A peer that connects and is silent is in the way for no longer.
  socket.set(zmq::sockopt::handshake_ivl, kLinkTimeoutMs);
}

// A link's: it tries again without end, soon after the way is free. (What the
// kernel does by itself about an unanswered connection comes ever later.)
void SetReconnection(zmq::socket_t& socket) {
  constexpr int kMaxPauseMs = 250, kConnectTimeoutMs = 1000;
  socket.set(zmq::sockopt::reconnect_ivl_max, kMaxPauseMs);
  socket.set(zmq::sockopt::connect_timeout, kConnectTimeoutMs);
}

class ZmqHub final : public Hub {
 public:
  // `wake_fd` is owned from now on.
  explicit ZmqHub(int wake_fd) : wake_fd_(wake_fd) {}
  ~ZmqHub() override {
    socket_.close();
    context_.shutdown();  // ends the door's thread
    door_.reset();
    context_.close();
    close(wake_fd_);
  }

  // Throws zmq::error_t.
  void Bind(const std::string& dir, WhoIs who_is) {
    MakeSocket();
    const uid_t uid = geteuid();
    if (zmq_setsockopt(socket_.handle(), ZMQ_IPC_FILTER_UID, &uid,
                       sizeof uid) != 0) {
      throw zmq::error_t();
    }
    if (who_is) {
      Guard([who_is = std::move(who_is)](const auto& question) {
        return ChannelDoor::JudgeProcess(question, who_is);
      });
    }
    BindFile(dir);
    dir_ = dir;
  }

  absl::StatusOr<bool> Restore() override {
    struct stat info;
    if (dir_.empty() || lstat(FileIn(dir_).c_str(), &info) == 0) return false;
    try {
      // The old one goes with us: to unbind it would remove the new file.
      BindFile(dir_);
    } catch (const zmq::error_t& e) {
      return ZmqError(absl::StrCat("binding ", Endpoint(dir_), " again"), e);
    }
    return true;
  }

  // Throws zmq::error_t.
  void BindTcp(UniqueFd listener, const ChannelKeys& keys) {
    MakeSocket();
    SetTcpOptions(socket_, keys.own);
    socket_.set(zmq::sockopt::curve_server, true);
    std::vector<std::string> ranks;
    for (const std::string& key : keys.peers) {
      ranks.push_back(ChannelKeyBytes(key));
    }
    Guard([ranks = std::move(ranks)](const auto& question) {
      return ChannelDoor::JudgeKey(question, ranks);
    });
    socket_.set(zmq::sockopt::use_fd, listener.get());
    socket_.bind("tcp://127.0.0.1:0");  // is not looked at
    listener.release();
  }

  static std::string FileIn(const std::string& dir) {
    return absl::StrCat(dir, "/", std::string(kControlSocketName));
  }

  // Throws zmq::error_t.
  void BindFile(const std::string& dir) {
    socket_.bind(Endpoint(dir));
    // Nobody else gets as far as this in a private directory; in another one
    // the filter has kept them out until now.
    chmod(FileIn(dir).c_str(), 0600);
  }

  absl::Status Send(Rank rank, Incarnation incarnation,
                    std::string_view bytes) override {
    try {
      const std::string identity = Identity(rank, incarnation);
      const auto flags = zmq::send_flags::dontwait;
      if (!socket_.send(zmq::buffer(identity),
                        flags | zmq::send_flags::sndmore) ||
          !socket_.send(zmq::buffer(bytes), flags)) {
        return absl::UnavailableError(
            absl::StrCat("the queue to worker ", rank, " is full"));
      }
      return absl::OkStatus();
    } catch (const zmq::error_t& e) {
      return ZmqError(absl::StrCat("sending to worker ", rank), e);
    }
  }

  absl::StatusOr<std::vector<Message>> Receive(int timeout_ms) override {
    try {
      std::vector<Message> messages;
      if (!ReceiveReady(messages)) {
        zmq::pollitem_t items[] = {{socket_.handle(), 0, ZMQ_POLLIN, 0},
                                   {nullptr, wake_fd_, ZMQ_POLLIN, 0}};
        zmq::poll(items, 2, std::chrono::milliseconds(timeout_ms));
        uint64_t count;
        if (items[1].revents != 0) {
          [[maybe_unused]] ssize_t n = read(wake_fd_, &count, sizeof(count));
        }
        ReceiveReady(messages);
      }
      return messages;
    } catch (const zmq::error_t& e) {
      if (e.num() == EINTR) return std::vector<Message>();
      return ZmqError("receiving from workers", e);
    }
  }

  void Wake() override {
    const uint64_t one = 1;
    [[maybe_unused]] ssize_t n = write(wake_fd_, &one, sizeof(one));
  }

 private:
  void MakeSocket() {
    socket_ = zmq::socket_t(context_, zmq::socket_type::router);
    SetCommonOptions(socket_);
    socket_.set(zmq::sockopt::router_mandatory, true);
    socket_.set(zmq::sockopt::router_handover, true);
  }

  void Guard(ChannelDoor::Judge judge) {
    door_ = std::make_unique<ChannelDoor>(context_, std::move(judge));
    socket_.set(zmq::sockopt::zap_domain, ChannelDoor::kDomain);
  }

  // Takes what is there without waiting; true when something was.
  bool ReceiveReady(std::vector<Message>& messages) {
    for (int i = 0; i < kMaxBatch; ++i) {
      zmq::message_t identity;
      if (!socket_.recv(identity, zmq::recv_flags::dontwait)) break;
      Message message;
      bool known = ParseIdentity(identity.to_string_view(), message.rank,
                                 message.incarnation);
      bool more = identity.more();
      for (int part = 0; more; ++part) {
        zmq::message_t body;
        if (!socket_.recv(body, zmq::recv_flags::none)) break;
        more = body.more();
        known = known && part == 0 && !more;
        known = known && MaySpeakFor(message.rank, body);
        message.bytes.assign(body.data<char>(), body.size());
      }
      // With room for the encryption a little more comes through.
      known = known && message.bytes.size() <= wire::kMaxMessageBytes;
      if (known) messages.push_back(std::move(message));
    }
    return !messages.empty();
  }

  // Whether a message came over a connection of that rank's process.
  bool MaySpeakFor(Rank rank, const zmq::message_t& message) const {
    if (door_ == nullptr) return true;
    const char* user =
        zmq_msg_gets(const_cast<zmq_msg_t*>(message.handle()), "User-Id");
    return user != nullptr && absl::StrCat(rank) == user;
  }

  zmq::context_t context_{1};
  std::unique_ptr<ChannelDoor> door_;  // its thread uses the context
  std::string dir_;                    // of the socket's file; empty for TCP
  zmq::socket_t socket_;
  const int wake_fd_;
};

class ZmqLink final : public Link {
 public:
  ZmqLink(zmq::context_t context, zmq::socket_t socket)
      : context_(std::move(context)), socket_(std::move(socket)) {}
  ~ZmqLink() override {
    socket_.close();
    context_.close();
  }

  absl::Status Send(std::string_view bytes) override {
    try {
      if (!socket_.send(zmq::buffer(bytes), zmq::send_flags::dontwait)) {
        return absl::UnavailableError("the queue to the coordinator is full");
      }
      return absl::OkStatus();
    } catch (const zmq::error_t& e) {
      return ZmqError("sending to the coordinator", e);
    }
  }

  absl::StatusOr<std::optional<std::string>> Receive(int timeout_ms,
                                                     int wake_fd) override {
    try {
      zmq::message_t message;
      if (!socket_.recv(message, zmq::recv_flags::dontwait)) {
        if (timeout_ms == 0) return std::nullopt;
        zmq::pollitem_t items[] = {{socket_.handle(), 0, ZMQ_POLLIN, 0},
                                   {nullptr, wake_fd, ZMQ_POLLIN, 0}};
        zmq::poll(items, wake_fd >= 0 ? 2 : 1,
                  std::chrono::milliseconds(timeout_ms));
        if (!socket_.recv(message, zmq::recv_flags::dontwait)) {
          return std::nullopt;
        }
      }
      std::string bytes(message.data<char>(), message.size());
      for (bool more = message.more(); more;) {  // not one of ours: drop it
        zmq::message_t rest;
        if (!socket_.recv(rest, zmq::recv_flags::none)) break;
        more = rest.more();
        bytes.clear();
      }
      return std::optional<std::string>(std::move(bytes));
    } catch (const zmq::error_t& e) {
      if (e.num() == EINTR) return std::nullopt;
      return ZmqError("receiving from the coordinator", e);
    }
  }

 private:
  zmq::context_t context_;
  zmq::socket_t socket_;
};

absl::StatusOr<std::unique_ptr<ZmqHub>> MakeHub() {
  const int wake_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
  if (wake_fd < 0) return absl::ErrnoToStatus(errno, "eventfd");
  return std::make_unique<ZmqHub>(wake_fd);
}

// Throws zmq::error_t.
zmq::socket_t MakeLinkSocket(zmq::context_t& context, Rank rank,
                             Incarnation incarnation) {
  zmq::socket_t socket(context, zmq::socket_type::dealer);
  SetCommonOptions(socket);
  socket.set(zmq::sockopt::routing_id, Identity(rank, incarnation));
  socket.set(zmq::sockopt::reconnect_ivl, 20);
  socket.set(zmq::sockopt::probe_router, true);
  // A new connection is a new pipe: it begins with the probe, and nothing
  // meant for an earlier coordinator goes to its successor.
  socket.set(zmq::sockopt::immediate, true);
  return socket;
}

}  // namespace

absl::StatusOr<std::unique_ptr<Hub>> Hub::Bind(const std::string& dir,
                                               WhoIs who_is) {
  ASSIGN_OR_RETURN(auto hub, MakeHub());
  try {
    hub->Bind(dir, std::move(who_is));
  } catch (const zmq::error_t& e) {
    return ZmqError(absl::StrCat("binding ", Endpoint(dir)), e);
  }
  return hub;
}

absl::StatusOr<std::unique_ptr<Hub>> Hub::BindTcp(UniqueFd listener,
                                                  const ChannelKeys& keys) {
  if (!listener) {
    return absl::InvalidArgumentError(
        "there is no socket for workers to connect to: the launcher hands it "
        "over, start the group with `moebius serve`");
  }
  ASSIGN_OR_RETURN(auto hub, MakeHub());
  try {
    hub->BindTcp(std::move(listener), keys);
  } catch (const zmq::error_t& e) {
    return ZmqError("taking over the control channel's socket", e);
  }
  return hub;
}

absl::StatusOr<std::unique_ptr<Link>> Link::Connect(const std::string& dir,
                                                    Rank rank,
                                                    Incarnation incarnation) {
  try {
    zmq::context_t context(1);
    zmq::socket_t socket = MakeLinkSocket(context, rank, incarnation);
    socket.connect(Endpoint(dir));
    return std::make_unique<ZmqLink>(std::move(context), std::move(socket));
  } catch (const zmq::error_t& e) {
    return ZmqError(absl::StrCat("connecting to ", Endpoint(dir)), e);
  }
}

absl::StatusOr<std::unique_ptr<Link>> Link::ConnectTcp(
    const std::string& host, int port, const ChannelKeys& keys, Rank rank,
    Incarnation incarnation) {
  if (keys.peers.empty()) {
    return absl::InvalidArgumentError("the hub's key is missing");
  }
  try {
    zmq::context_t context(1);
    zmq::socket_t socket = MakeLinkSocket(context, rank, incarnation);
    SetTcpOptions(socket, keys.own);
    SetReconnection(socket);
    socket.set(zmq::sockopt::curve_serverkey, keys.peers[0]);
    socket.connect(TcpEndpoint(host, port));
    return std::make_unique<ZmqLink>(std::move(context), std::move(socket));
  } catch (const zmq::error_t& e) {
    return ZmqError(absl::StrCat("connecting to ", TcpEndpoint(host, port)), e);
  }
}

}  // namespace moebius
