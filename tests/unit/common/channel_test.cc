// The control channel keeps order, bounds and identities.
#include "common/channel.h"

#include <stdlib.h>

#include <filesystem>
#include <string>
#include <thread>

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
    auto hub = Hub::Bind(dir_);
    ASSERT_THAT(hub, IsOk());
    hub_ = *std::move(hub);
  }
  void TearDown() override {
    hub_.reset();
    std::filesystem::remove_all(dir_);
  }
  // Waits for one message.
  Hub::Message Next() {
    while (queued_.empty()) {
      auto messages = hub_->Receive(kLongMs);
      if (!messages.ok() || messages->empty()) {
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

TEST_F(ChannelTest, AnotherLifeOfAWorkerIsAnotherAddress) {
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
  auto hub = Hub::Bind(dir_);
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

}  // namespace
}  // namespace moebius
