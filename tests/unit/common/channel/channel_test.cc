// The control channel keeps order, bounds and identities.
#include "common/channel/channel.h"

#include <stdlib.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <condition_variable>
#include <cstring>
#include <filesystem>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "common/base/unique_fd.h"
#include "common/channel/channel_door_zmq.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/status_matchers.h"

namespace moebius {
namespace {

constexpr int kLongMs = 10000;

class ChannelTest : public testing::Test {
 protected:
  void SetUp() override {
    std::string path = testing::TempDir() + "channelXXXXXX";
    ASSERT_NE(mkdtemp(path.data()), nullptr);
    dir_ = path;
    Bind();
  }
  virtual void Bind() {
    auto hub = Hub::Bind(dir_, nullptr);
    ASSERT_THAT(hub, IsOk());
    hub_ = *std::move(hub);
  }
  void TearDown() override {
    hub_.reset();
    std::filesystem::remove_all(dir_);
  }
  // Waits for one message.
  Hub::Message Next() {
    // One that is not let through makes it return as well.
    for (int i = 0; queued_.empty(); ++i) {
      auto messages = hub_->Receive(kLongMs);
      if (!messages.ok() || i == 100) {
        ADD_FAILURE() << "no message: " << messages.status();
        return {};
      }
      for (auto& m : *messages) queued_.push_back(std::move(m));
    }
    Hub::Message message = std::move(queued_.front());
    queued_.erase(queued_.begin());
    return message;
  }
  // A link sees to its connection while it is being listened to.
  void AwaitConnection(Link& link) {
    for (int i = 0; i < kLongMs && queued_.empty(); ++i) {
      EXPECT_THAT(link.Receive(1), IsOk());
      auto messages = hub_->Receive(0);
      ASSERT_THAT(messages, IsOk());
      for (auto& m : *messages) queued_.push_back(std::move(m));
    }
  }
  // A link that has connected, as the hub was told.
  std::unique_ptr<Link> Connect(Rank rank, Incarnation incarnation) {
    auto link = Link::Connect(dir_, rank, incarnation);
    EXPECT_THAT(link, IsOk());
    AwaitConnection(**link);
    const Hub::Message message = Next();
    EXPECT_EQ(message.rank, rank);
    EXPECT_EQ(message.incarnation, incarnation);
    EXPECT_EQ(message.bytes, "");
    return *std::move(link);
  }
  std::string dir_;
  std::unique_ptr<Hub> hub_;
  std::vector<Hub::Message> queued_;
};

TEST_F(ChannelTest, SendingToAWorkerThatIsNotThereIsAnError) {
  EXPECT_THAT(hub_->Send(0, Incarnation{1}, "x"),
              StatusIs(absl::StatusCode::kUnavailable));
}

TEST_F(ChannelTest, ASocketFileThatSomebodyRemovesIsMadeAgain) {
  const auto before = Connect(0, Incarnation{1});
  EXPECT_FALSE(*hub_->Restore());
  ASSERT_TRUE(std::filesystem::remove(dir_ + "/control.sock"));
  EXPECT_TRUE(*hub_->Restore());
  EXPECT_FALSE(*hub_->Restore());
  // Who was connected still is, and others find it.
  ASSERT_THAT(before->Send("still here"), IsOk());
  EXPECT_EQ(Next().bytes, "still here");
  const auto after = Connect(1, Incarnation{1});
  ASSERT_THAT(after->Send("new here"), IsOk());
  EXPECT_EQ(Next().bytes, "new here");
  std::filesystem::remove_all(dir_);
  EXPECT_FALSE(hub_->Restore().ok());
}

TEST_F(ChannelTest, MessagesArriveInOrderBothWays) {
  const auto link = Connect(1, Incarnation{3});
  for (int i = 0; i < 100; ++i) {
    ASSERT_THAT(link->Send(std::to_string(i)), IsOk());
  }
  for (int i = 0; i < 100; ++i) {
    const Hub::Message message = Next();
    EXPECT_EQ(message.rank, 1);
    EXPECT_EQ(message.incarnation, Incarnation{3});
    EXPECT_EQ(message.bytes, std::to_string(i));
  }
  for (int i = 0; i < 100; ++i) {
    ASSERT_THAT(hub_->Send(1, Incarnation{3}, std::to_string(i)), IsOk());
  }
  for (int i = 0; i < 100; ++i) {
    auto got = link->Receive(kLongMs);
    ASSERT_THAT(got, IsOk());
    ASSERT_TRUE(got->has_value());
    EXPECT_EQ(**got, std::to_string(i));
  }
}

TEST_F(ChannelTest, AnotherIncarnationIsAnotherAddress) {
  const auto link = Connect(0, Incarnation{1});
  ASSERT_THAT(link->Send("hello"), IsOk());
  Next();
  EXPECT_THAT(hub_->Send(0, Incarnation{2}, "x"),
              StatusIs(absl::StatusCode::kUnavailable));
  EXPECT_THAT(hub_->Send(0, Incarnation{1}, "x"), IsOk());
}

// A worker hears of a new hub in its place, which hears of it; what it said
// meanwhile is lost, and known to be.
TEST_F(ChannelTest, AnotherHubIsToldWhoIsThere) {
  const auto link = Connect(1, Incarnation{3});
  hub_.reset();
  auto hub = Hub::Bind(dir_, nullptr);
  ASSERT_THAT(hub, IsOk());
  hub_ = *std::move(hub);
  AwaitConnection(*link);
  const Hub::Message message = Next();
  EXPECT_EQ(message.rank, 1);
  EXPECT_EQ(message.incarnation, Incarnation{3});
  EXPECT_EQ(message.bytes, "");
  ASSERT_THAT(link->Send("hello"), IsOk());
  EXPECT_EQ(Next().bytes, "hello");
}

TEST_F(ChannelTest, WakeEndsAWait) {
  std::thread waker([&] { hub_->Wake(); });
  const auto messages = hub_->Receive(-1);
  waker.join();
  ASSERT_THAT(messages, IsOk());
  EXPECT_TRUE(messages->empty());
}

TEST_F(ChannelTest, ReceiveGivesUpAfterItsTime) {
  const auto link = Connect(0, Incarnation{1});
  auto got = link->Receive(1);
  ASSERT_THAT(got, IsOk());
  EXPECT_FALSE(got->has_value());
}

TEST_F(ChannelTest, ALinkStopsWaitingWhenADescriptorIsReadable) {
  const auto link = Connect(0, Incarnation{1});
  const UniqueFd wake(::eventfd(0, EFD_CLOEXEC));
  std::thread waker([&] { EXPECT_EQ(::eventfd_write(wake.get(), 1), 0); });
  auto got = link->Receive(-1, wake.get());
  waker.join();
  ASSERT_THAT(got, IsOk());
  EXPECT_FALSE(got->has_value());
  // A message comes through all the same.
  ASSERT_THAT(hub_->Send(0, Incarnation{1}, "x"), IsOk());
  for (int i = 0; i < kLongMs && !got->has_value(); ++i) {
    got = link->Receive(1, wake.get());
    ASSERT_THAT(got, IsOk());
  }
  EXPECT_EQ(**got, "x");
}

TEST_F(ChannelTest, AFullQueueIsAnErrorNotAWait) {
  const auto link = Connect(0, Incarnation{1});
  ASSERT_THAT(link->Send("hello"), IsOk());
  Next();
  const std::string big(1 << 20, 'x');
  absl::Status status;
  for (int i = 0; i < 10 * kChannelQueueMessages && status.ok(); ++i) {
    status = hub_->Send(0, Incarnation{1}, big);
  }
  EXPECT_THAT(status, StatusIs(absl::StatusCode::kUnavailable));
}

TEST_F(ChannelTest, TheSocketIsOurUsersAlone) {
  struct stat info {};
  const std::string path = dir_ + "/" + std::string(kControlSocketName);
  ASSERT_EQ(stat(path.c_str(), &info), 0);
  EXPECT_EQ(info.st_mode & 07777, 0600u);
  EXPECT_EQ(info.st_uid, geteuid());
}

// A connection to the socket that does not know ZeroMQ.
class RawConnection {
 public:
  explicit RawConnection(const std::string& dir)
      : fd_(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0)) {
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    const std::string path = dir + "/" + std::string(kControlSocketName);
    memcpy(address.sun_path, path.data(), path.size());
    const timeval patience{10, 0};
    setsockopt(fd_, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience));
    connected_ = connect(fd_, reinterpret_cast<sockaddr*>(&address),
                         sizeof(address)) == 0;
  }
  ~RawConnection() { close(fd_); }
  bool connected() const { return connected_; }
  void Send(const std::string& bytes) {
    send(fd_, bytes.data(), bytes.size(), MSG_NOSIGNAL);
  }
  // Reads until the peer hangs up; false if it does not.
  bool HungUp() {
    char bytes[4096];
    for (ssize_t n; (n = recv(fd_, bytes, sizeof(bytes), 0)) != 0;) {
      if (n < 0) return errno == ECONNRESET;
    }
    return true;
  }

 private:
  const int fd_;
  bool connected_ = false;
};

TEST_F(ChannelTest, OtherUsersAreHungUpOn) {
  if (geteuid() != 0) GTEST_SKIP() << "needs root to be somebody else";
  // As if the directory were open to all.
  const std::string path = dir_ + "/" + std::string(kControlSocketName);
  ASSERT_EQ(chmod(dir_.c_str(), 0755), 0);
  ASSERT_EQ(chmod(path.c_str(), 0666), 0);
  const pid_t child = fork();
  if (child == 0) {
    if (setresuid(65534, 65534, 65534) != 0) _exit(2);
    RawConnection stranger(dir_);
    _exit(stranger.connected() && stranger.HungUp() ? 0 : 1);
  }
  int status = 0;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  EXPECT_EQ(status, 0);
}

// The launcher's part: tells the rank of each connection in turn.
class GuardedChannelTest : public ChannelTest {
 protected:
  void Bind() override {
    auto hub = Hub::Bind(dir_, [this](pid_t pid) { return Answer(pid); });
    ASSERT_THAT(hub, IsOk());
    hub_ = *std::move(hub);
  }
  void TearDown() override {
    hub_.reset();  // its thread calls us
    ChannelTest::TearDown();
  }
  absl::StatusOr<std::optional<Rank>> Answer(pid_t pid) {
    EXPECT_EQ(pid, getpid());
    std::lock_guard lock(mutex_);
    const size_t i = num_asked_++;
    asked_.notify_all();
    return i < ranks_.size() ? ranks_[i] : std::nullopt;
  }
  bool WaitForQuestions(size_t count) {
    std::unique_lock lock(mutex_);
    return asked_.wait_for(lock, std::chrono::seconds(10),
                           [&] { return num_asked_ >= count; });
  }

  // What somebody says who may not be let in.
  void Forge(Link& link, size_t questions) {
    ASSERT_TRUE(WaitForQuestions(questions));
    for (int i = 0; i < 5; ++i) {
      EXPECT_THAT(link.Receive(1), IsOk());
      link.Send("forged").IgnoreError();
    }
  }

  std::mutex mutex_;
  std::condition_variable asked_;
  size_t num_asked_ = 0;
  std::vector<std::optional<Rank>>
      ranks_;  // by connection; nothing: a stranger
};

TEST_F(GuardedChannelTest, StrangersAreNeitherHeardNorSpokenTo) {
  ranks_ = {std::nullopt, 1};
  auto stranger = Link::Connect(dir_, 0, Incarnation{1});
  ASSERT_THAT(stranger, IsOk());
  Forge(**stranger, 1);
  const auto worker = Connect(1, Incarnation{1});
  ASSERT_THAT(worker->Send("hello"), IsOk());
  EXPECT_EQ(Next().bytes, "hello");
  EXPECT_THAT(hub_->Send(0, Incarnation{1}, "secret"),
              StatusIs(absl::StatusCode::kUnavailable));
}

// Without the question the newcomer would have the name, and what is sent to
// it (ZMQ_ROUTER_HANDOVER).
TEST_F(GuardedChannelTest, AStrangerDoesNotTakeAnIdentityOver) {
  ranks_ = {0};
  const auto worker = Connect(0, Incarnation{7});
  ASSERT_THAT(worker->Send("hello"), IsOk());
  EXPECT_EQ(Next().bytes, "hello");
  for (size_t i = 2; i < 12; ++i) {
    auto stranger = Link::Connect(dir_, 0, Incarnation{7});
    ASSERT_THAT(stranger, IsOk());
    Forge(**stranger, i);
    ASSERT_THAT(hub_->Send(0, Incarnation{7}, "command"), IsOk());
    const auto got = worker->Receive(kLongMs);
    ASSERT_THAT(got, IsOk());
    EXPECT_EQ(*got, "command");
    ASSERT_THAT(worker->Send("report"), IsOk());
    EXPECT_EQ(Next().bytes, "report");
  }
}

TEST_F(GuardedChannelTest, AWorkerIsHeardForItsOwnRankAlone) {
  ranks_ = {1, 1};
  auto posing = Link::Connect(dir_, 0, Incarnation{1});
  ASSERT_THAT(posing, IsOk());
  Forge(**posing, 1);
  const auto honest = Connect(1, Incarnation{1});
  ASSERT_THAT(honest->Send("hello"), IsOk());
  EXPECT_EQ(Next().bytes, "hello");
}

TEST_F(GuardedChannelTest, WhatIsNotTheProtocolEndsItsConnectionAlone) {
  ranks_ = std::vector<std::optional<Rank>>(10, 0);
  const auto link = Connect(0, Incarnation{1});
  std::string greeting(64, '\0');  // ZMTP 3.0, mechanism NULL
  greeting[0] = '\xff';
  greeting[9] = '\x7f';
  greeting[10] = 3;
  greeting.replace(12, 4, "NULL");
  const std::string ready(
      "\4\x26\5READY\x0bSocket-Type\0\0\0\6DEALER"
      "\x08Identity\0\0\0\0",
      2 + 0x26);
  for (const std::string& bytes :
       {std::string(1000, 'x'), std::string(1000, '\0'),
        std::string("GET / HTTP/1.1\r\n\r\n"), greeting.substr(0, 12) + "XXXX",
        // A message of 2^62 bytes.
        greeting + ready + "\2\x40" + std::string(7, '\0')}) {
    RawConnection raw(dir_);
    ASSERT_TRUE(raw.connected());
    raw.Send(bytes);
    raw.Send(std::string(100, 'x'));
    EXPECT_TRUE(raw.HungUp());
  }
  ASSERT_THAT(link->Send("still here"), IsOk());
  EXPECT_EQ(Next().bytes, "still here");
}

TEST(ChannelDoor, OnlyProcessesOfOurUserAreAskedAbout) {
  int asked = 0;
  const WhoIs who_is = [&](pid_t pid) -> absl::StatusOr<std::optional<Rank>> {
    EXPECT_EQ(pid, 77);
    ++asked;
    return 3;
  };
  const std::string uid = std::to_string(geteuid());
  const std::string other = std::to_string(geteuid() + 1);
  for (const std::string& address :
       {std::string(), std::string("127.0.0.1"), std::string("localhost"),
        "localhost:" + other + ":0:77",
        "localhost:" + uid + ":0:", "localhost:" + uid + ":0:-77",
        "localhost:" + uid + ":0:0", "localhost:" + uid + ":0:77x",
        uid + ":0:77", std::string("localhost::0:77"),
        "localhost:" + uid + ":0:99999999999999999999"}) {
    const auto rank = ChannelDoor::JudgeProcess({address, "NULL", ""}, who_is);
    ASSERT_THAT(rank, IsOk()) << address;
    EXPECT_FALSE(rank->has_value()) << address;
  }
  EXPECT_EQ(asked, 0);
  const auto rank = ChannelDoor::JudgeProcess(
      {"localhost:" + uid + ":0:77", "NULL", ""}, who_is);
  ASSERT_THAT(rank, IsOk());
  EXPECT_EQ(*rank, 3);
  EXPECT_EQ(asked, 1);
}

}  // namespace
}  // namespace moebius
