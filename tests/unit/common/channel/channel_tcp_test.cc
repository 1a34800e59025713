// The control channel over TCP: keys, connections that break, connections that
// fall silent.
#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <chrono>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>
#include <zmq.hpp>

#include "common/channel/channel.h"
#include "common/channel/channel_door_zmq.h"
#include "common/channel/channel_keys.h"
#include "common/wire/wire.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/status_matchers.h"

namespace moebius {
namespace {

constexpr int kLongMs = 10'000;
constexpr int kRanks = 2;

UniqueFd Listen(int* port) {
  UniqueFd fd(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  auto* any = reinterpret_cast<sockaddr*>(&address);
  socklen_t size = sizeof address;
  EXPECT_EQ(bind(fd.get(), any, size), 0);
  EXPECT_EQ(listen(fd.get(), 64), 0);
  EXPECT_EQ(getsockname(fd.get(), any, &size), 0);
  *port = ntohs(address.sin_port);
  return fd;
}

UniqueFd Dial(int port) {
  UniqueFd fd(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  address.sin_port = htons(static_cast<uint16_t>(port));
  EXPECT_EQ(
      connect(fd.get(), reinterpret_cast<sockaddr*>(&address), sizeof address),
      0);
  return fd;
}

// The way between a link and its hub, which can be cut, or swallow everything.
class Way {
 public:
  explicit Way(int hub_port) : hub_port_(hub_port) {
    listener_ = Listen(&port_);
    thread_ = std::thread([this] { Run(); });
  }
  ~Way() {
    ending_ = true;
    Wake();
    thread_.join();
  }
  int port() const { return port_; }
  // Ends the connections that there are.
  void Cut() { Ask(&Way::cut_); }
  // Nothing passes any more over the connections that there are; nobody is
  // told.
  void Swallow() { Ask(&Way::swallow_); }

 private:
  struct Pipe {
    UniqueFd ends[2];
    bool silent = false;
  };
  void Ask(std::atomic<bool> Way::*what) {
    this->*what = true;
    Wake();
    while (this->*what) std::this_thread::yield();
  }
  void Wake() {
    const uint64_t one = 1;
    ASSERT_EQ(write(wake_.get(), &one, sizeof one), ssize_t{sizeof one});
  }
  void Run() {
    while (!ending_) {
      std::vector<pollfd> entries = {{wake_.get(), POLLIN, 0},
                                     {listener_.get(), POLLIN, 0}};
      for (const Pipe& pipe : pipes_) {
        for (const UniqueFd& end : pipe.ends) {
          entries.push_back({pipe.silent ? -1 : end.get(), POLLIN, 0});
        }
      }
      ASSERT_GT(poll(entries.data(), entries.size(), -1), 0);
      uint64_t count;
      if (entries[0].revents != 0) {
        ASSERT_GT(read(wake_.get(), &count, sizeof count), 0);
      }
      if (cut_) pipes_.clear();
      for (Pipe& pipe : pipes_) pipe.silent = pipe.silent || swallow_;
      if (cut_.exchange(false) || swallow_.exchange(false)) continue;
      std::vector<Pipe> open;
      for (size_t i = 0; i < pipes_.size(); ++i) {
        if (Pump(pipes_[i], &entries[2 + 2 * i])) {
          open.push_back(std::move(pipes_[i]));
        }
      }
      pipes_ = std::move(open);
      if (entries[1].revents == 0) continue;
      UniqueFd link(accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC));
      if (link) pipes_.push_back({{std::move(link), Dial(hub_port_)}});
    }
  }
  static bool Pump(Pipe& pipe, const pollfd* entries) {
    for (int i = 0; i < 2; ++i) {
      if (entries[i].revents == 0) continue;
      char bytes[65536];
      const ssize_t n = recv(pipe.ends[i].get(), bytes, sizeof bytes, 0);
      if (n <= 0) return false;
      if (send(pipe.ends[1 - i].get(), bytes, static_cast<size_t>(n),
               MSG_NOSIGNAL) != n) {
        return false;
      }
    }
    return true;
  }

  const int hub_port_;
  int port_ = 0;
  UniqueFd listener_;
  const UniqueFd wake_{eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC)};
  std::vector<Pipe> pipes_;
  std::atomic<bool> ending_{false}, cut_{false}, swallow_{false};
  std::thread thread_;
};

ChannelKeyPair NewPair() {
  auto pair = MakeChannelKeyPair();
  EXPECT_THAT(pair, IsOk());
  return *std::move(pair);
}

class ChannelTcpTest : public testing::Test {
 protected:
  void SetUp() override {
    listener_ = Listen(&port_);
    hub_keys_.own = NewPair();
    for (Rank rank = 0; rank < kRanks; ++rank) {
      link_keys_.push_back({NewPair(), {hub_keys_.own.public_key}});
      hub_keys_.peers.push_back(link_keys_[rank].own.public_key);
    }
    Bind();
  }
  // The socket goes on listening, as the launcher's does.
  void Bind() {
    UniqueFd copy(fcntl(listener_.get(), F_DUPFD_CLOEXEC, 0));
    auto hub = Hub::BindTcp(std::move(copy), hub_keys_);
    ASSERT_THAT(hub, IsOk());
    hub_ = *std::move(hub);
  }
  std::unique_ptr<Link> LinkTo(int port, const ChannelKeys& keys, Rank rank,
                               Incarnation incarnation) {
    auto link = Link::ConnectTcp("127.0.0.1", port, keys, rank, incarnation);
    EXPECT_THAT(link, IsOk());
    return *std::move(link);
  }
  // The next message. A link sees to its connection while it is listened to.
  Hub::Message Next(std::vector<Link*> links = {}) {
    const auto end =
        std::chrono::steady_clock::now() + std::chrono::milliseconds(kLongMs);
    while (queued_.empty()) {
      if (std::chrono::steady_clock::now() > end) {
        ADD_FAILURE() << "no message";
        return {-1, {}, ""};
      }
      for (Link* link : links) EXPECT_THAT(link->Receive(0), IsOk());
      auto messages = hub_->Receive(1);
      EXPECT_THAT(messages, IsOk());
      for (auto& m : *messages) queued_.push_back(std::move(m));
    }
    Hub::Message message = std::move(queued_.front());
    queued_.erase(queued_.begin());
    return message;
  }
  // As the hub was told.
  void AwaitConnection(Link& link, Rank rank, Incarnation incarnation) {
    const Hub::Message message = Next({&link});
    EXPECT_EQ(message.rank, rank);
    EXPECT_EQ(message.incarnation, incarnation);
    EXPECT_EQ(message.bytes, "");
  }
  std::unique_ptr<Link> Connect(Rank rank, Incarnation incarnation, int port) {
    auto link = LinkTo(port, link_keys_[rank], rank, incarnation);
    AwaitConnection(*link, rank, incarnation);
    return link;
  }
  std::unique_ptr<Link> Connect(Rank rank, Incarnation incarnation) {
    return Connect(rank, incarnation, port_);
  }
  // Tries to speak for a while; a good link that comes after it is heard alone.
  void ExpectUnheard(Link& link) {
    for (int i = 0; i < 100; ++i) {
      EXPECT_THAT(link.Receive(1), IsOk());
      link.Send("forged").IgnoreError();
    }
    const auto honest = Connect(1, Incarnation{1});
    ASSERT_THAT(honest->Send("hello"), IsOk());
    EXPECT_EQ(Next().bytes, "hello");
    EXPECT_THAT(hub_->Send(0, Incarnation{1}, "secret"),
                StatusIs(absl::StatusCode::kUnavailable));
  }

  int port_ = 0;
  UniqueFd listener_;
  ChannelKeys hub_keys_;
  std::vector<ChannelKeys> link_keys_;
  std::unique_ptr<Hub> hub_;
  std::vector<Hub::Message> queued_;
};

// ---- who gets in ------------------------------------------------------------

TEST_F(ChannelTcpTest, AKeyThatNobodyHasIsRefused) {
  const ChannelKeys keys{NewPair(), {hub_keys_.own.public_key}};
  ExpectUnheard(*LinkTo(port_, keys, 0, Incarnation{1}));
}

TEST_F(ChannelTcpTest, APublicKeyWithoutItsSecretIsRefused) {
  ChannelKeys keys = link_keys_[0];
  keys.own.secret_key = NewPair().secret_key;
  ExpectUnheard(*LinkTo(port_, keys, 0, Incarnation{1}));
}

TEST_F(ChannelTcpTest, AnotherRanksKeyIsNotHeardForThisRank) {
  auto posing = LinkTo(port_, link_keys_[1], 0, Incarnation{1});
  for (int i = 0; i < 100; ++i) {
    EXPECT_THAT(posing->Receive(1), IsOk());
    posing->Send("forged").IgnoreError();
  }
  const auto honest = Connect(1, Incarnation{1});
  ASSERT_THAT(honest->Send("hello"), IsOk());
  EXPECT_EQ(Next().bytes, "hello");
}

TEST_F(ChannelTcpTest, WhoHasNoKeyIsRefused) {
  zmq::context_t context(1);
  zmq::socket_t stranger(context, zmq::socket_type::dealer);
  stranger.set(zmq::sockopt::linger, 0);
  stranger.set(zmq::sockopt::routing_id, "0.1");
  stranger.set(zmq::sockopt::probe_router, true);
  zmq_socket_monitor(stranger.handle(), "inproc://fate", ZMQ_EVENT_ALL);
  zmq::socket_t monitor(context, zmq::socket_type::pair);
  monitor.set(zmq::sockopt::rcvtimeo, kLongMs);
  monitor.connect("inproc://fate");
  stranger.connect("tcp://127.0.0.1:" + std::to_string(port_));
  stranger.send(zmq::str_buffer("forged"), zmq::send_flags::dontwait);
  for (uint16_t event = 0; event != ZMQ_EVENT_DISCONNECTED;) {
    zmq::message_t frame, address;
    ASSERT_TRUE(monitor.recv(frame) && monitor.recv(address));
    std::memcpy(&event, frame.data(), sizeof event);
    ASSERT_NE(event, ZMQ_EVENT_HANDSHAKE_SUCCEEDED);
  }
  EXPECT_THAT(hub_->Send(0, Incarnation{1}, "secret"),
              StatusIs(absl::StatusCode::kUnavailable));
}

// A worker does not speak with a hub that is not its group's.
TEST_F(ChannelTcpTest, AHubWithAnotherKeyIsRefused) {
  ChannelKeys keys = link_keys_[0];
  keys.peers = {NewPair().public_key};
  ExpectUnheard(*LinkTo(port_, keys, 0, Incarnation{1}));
}

TEST_F(ChannelTcpTest, AStrangerDoesNotTakeAnIdentityOver) {
  const auto worker = Connect(0, Incarnation{7});
  const ChannelKeys keys{NewPair(), {hub_keys_.own.public_key}};
  for (int i = 0; i < 5; ++i) {
    auto stranger = LinkTo(port_, keys, 0, Incarnation{7});
    for (int k = 0; k < 20; ++k) EXPECT_THAT(stranger->Receive(1), IsOk());
    ASSERT_THAT(hub_->Send(0, Incarnation{7}, "command"), IsOk());
    const auto got = worker->Receive(kLongMs);
    ASSERT_THAT(got, IsOk());
    EXPECT_EQ(*got, "command");
  }
}

TEST_F(ChannelTcpTest, WhatIsNotTheProtocolEndsItsConnectionAlone) {
  const auto worker = Connect(0, Incarnation{1});
  std::string greeting(64, '\0');  // ZMTP 3.1, mechanism CURVE
  greeting[0] = '\xff';
  greeting[9] = '\x7f';
  greeting[10] = 3;
  greeting[11] = 1;
  greeting.replace(12, 5, "CURVE");
  for (const std::string& bytes :
       {std::string(1000, 'x'), std::string(1000, '\0'),
        std::string("GET / HTTP/1.1\r\n\r\n"), greeting.substr(0, 12) + "XXXX",
        greeting + std::string(200, 'x'),
        // A HELLO that nobody has signed.
        greeting + "\4\xc8\5HELLO\1" + std::string(193, '\0'),
        // A message of 2^62 bytes.
        greeting + "\2\x40" + std::string(7, '\0')}) {
    const UniqueFd raw = Dial(port_);
    const timeval patience{10, 0};
    setsockopt(raw.get(), SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
    send(raw.get(), bytes.data(), bytes.size(), MSG_NOSIGNAL);
    send(raw.get(), bytes.data(), bytes.size(), MSG_NOSIGNAL);
    char got[4096];
    ssize_t n;
    while ((n = recv(raw.get(), got, sizeof got, 0)) > 0) {
    }
    EXPECT_TRUE(n == 0 || errno == ECONNRESET);
  }
  ASSERT_THAT(worker->Send("still here"), IsOk());
  EXPECT_EQ(Next().bytes, "still here");
}

TEST_F(ChannelTcpTest, WhatIsTooLargeIsNotHeard) {
  const auto worker = Connect(0, Incarnation{1});
  // What is heard of it. On a busy machine so much may take longer than a link
  // may be silent: then, and only then, it is said again on a new connection.
  const auto heard = [&](const std::vector<std::string>& said) {
    std::string bytes;
    bool timed_out = true;
    for (int i = 0; i < 5 && bytes.empty() && timed_out; ++i) {
      const auto begin = std::chrono::steady_clock::now();
      for (const auto& each : said) EXPECT_THAT(worker->Send(each), IsOk());
      bytes = Next({worker.get()}).bytes;
      timed_out = std::chrono::steady_clock::now() - begin >=
                  std::chrono::milliseconds(kLinkTimeoutMs);
    }
    return bytes;
  };
  EXPECT_EQ(heard({std::string(wire::kMaxMessageBytes, 'x')}).size(),
            wire::kMaxMessageBytes);
  // Beyond that it is dropped,
  EXPECT_EQ(heard({std::string(wire::kMaxMessageBytes + 1, 'x'), "next"}),
            "next");
  // and soon hung up on.
  ASSERT_THAT(worker->Send(std::string(wire::kMaxMessageBytes + 4096, 'x')),
              IsOk());
  AwaitConnection(*worker, 0, Incarnation{1});
}

TEST(ChannelDoor, ARankIsWhoHasTheSecretOfItsKey) {
  const std::string one(32, 'a'), other(32, 'b');
  const std::vector<std::string> keys = {one, other, ""};
  EXPECT_EQ(ChannelDoor::JudgeKey({"", "CURVE", one}, keys), 0);
  EXPECT_EQ(ChannelDoor::JudgeKey({"", "CURVE", other}, keys), 1);
  EXPECT_EQ(ChannelDoor::JudgeKey({"", "CURVE", ""}, keys), std::nullopt);
  EXPECT_EQ(ChannelDoor::JudgeKey({"", "CURVE", one + "x"}, keys),
            std::nullopt);
  EXPECT_EQ(ChannelDoor::JudgeKey({"", "NULL", one}, keys), std::nullopt);
  EXPECT_EQ(ChannelDoor::JudgeKey({"", "PLAIN", one}, keys), std::nullopt);
}

// ---- ways that break --------------------------------------------------------

TEST_F(ChannelTcpTest, MessagesArriveInOrderBothWays) {
  const auto link = Connect(1, Incarnation{3});
  for (int i = 0; i < 100; ++i) {
    ASSERT_THAT(link->Send(std::to_string(i)), IsOk());
    ASSERT_THAT(hub_->Send(1, Incarnation{3}, std::to_string(i)), IsOk());
  }
  for (int i = 0; i < 100; ++i) {
    EXPECT_EQ(Next().bytes, std::to_string(i));
    auto got = link->Receive(kLongMs);
    ASSERT_THAT(got, IsOk());
    EXPECT_EQ(*got, std::to_string(i));
  }
}

TEST_F(ChannelTcpTest, AnotherHubIsToldWhoIsThere) {
  const auto link = Connect(1, Incarnation{3});
  hub_.reset();
  Bind();
  AwaitConnection(*link, 1, Incarnation{3});
  ASSERT_THAT(link->Send("hello"), IsOk());
  EXPECT_EQ(Next().bytes, "hello");
}

TEST_F(ChannelTcpTest, ALinkThatWasCutConnectsAgain) {
  Way way(port_);
  const auto link = Connect(0, Incarnation{1}, way.port());
  for (int i = 0; i < 5; ++i) {
    way.Cut();
    AwaitConnection(*link, 0, Incarnation{1});
    ASSERT_THAT(link->Send("report"), IsOk());
    EXPECT_EQ(Next().bytes, "report");
    ASSERT_THAT(hub_->Send(0, Incarnation{1}, "command"), IsOk());
    EXPECT_EQ(*link->Receive(kLongMs), "command");
  }
}

// Nobody says that the connection is dead, and no message is on its way.
TEST_F(ChannelTcpTest, ASilentWayIsGivenUp) {
  Way way(port_);
  const auto link = Connect(0, Incarnation{1}, way.port());
  way.Swallow();
  AwaitConnection(*link, 0, Incarnation{1});
  ASSERT_THAT(link->Send("report"), IsOk());
  EXPECT_EQ(Next().bytes, "report");
  ASSERT_THAT(hub_->Send(0, Incarnation{1}, "command"), IsOk());
  EXPECT_EQ(*link->Receive(kLongMs), "command");
}

// ---- keys -------------------------------------------------------------------

TEST(ChannelKeys, AreReadOnceThroughTheirDescriptor) {
  const ChannelKeys keys{NewPair(),
                         {NewPair().public_key, NewPair().public_key}};
  auto fd = WriteChannelKeys(keys);
  ASSERT_THAT(fd, IsOk());
  const int number = fd->release();
  const auto read = ReadChannelKeys(number);
  ASSERT_THAT(read, IsOk());
  EXPECT_EQ(read->own.secret_key, keys.own.secret_key);
  EXPECT_EQ(read->own.public_key, keys.own.public_key);
  EXPECT_EQ(read->peers, keys.peers);
  EXPECT_EQ(fcntl(number, F_GETFD), -1);
}

TEST(ChannelKeys, WhatIsNoKeyIsRefused) {
  const ChannelKeys good{NewPair(), {NewPair().public_key}};
  std::vector<ChannelKeys> bad(4, good);
  bad[0].peers.clear();
  bad[1].own.secret_key.pop_back();
  bad[2].peers[0][3] = '"';  // not of Z85
  bad[3].peers = std::vector<std::string>(kMaxRanks + 1, good.peers[0]);
  for (const ChannelKeys& keys : bad) {
    auto fd = WriteChannelKeys(keys);
    ASSERT_THAT(fd, IsOk());
    EXPECT_THAT(ReadChannelKeys(fd->release()),
                StatusIs(absl::StatusCode::kInvalidArgument));
  }
  EXPECT_THAT(ReadChannelKeys(-1),
              StatusIs(absl::StatusCode::kInvalidArgument));
}

}  // namespace
}  // namespace moebius
