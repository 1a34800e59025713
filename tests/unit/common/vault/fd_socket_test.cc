#include "common/vault/fd_socket.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/stat.h>

#include <array>
#include <cstring>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/status_matchers.h"
#include "tests/unit/worker/memory/processes.h"

namespace moebius {
namespace {

using testing::HasSubstr;

absl::Span<const std::byte> Bytes(const std::string& text) {
  return {reinterpret_cast<const std::byte*>(text.data()), text.size()};
}

class FdSocketTest : public testing::Test {
 protected:
  FdSocketTest() {
    auto pair = UnixPair();
    EXPECT_THAT(pair, IsOk());
    ours_ = std::move(pair->first);
    theirs_ = std::move(pair->second);
  }

  // Sends `count` duplicates of standard error in one packet.
  void SendDescriptors(int count) {
    std::vector<int> fds(count, 2);
    std::vector<char> control(CMSG_SPACE(count * sizeof(int)));
    char byte = 'x';
    iovec part{&byte, 1};
    msghdr message{};
    message.msg_iov = &part;
    message.msg_iovlen = 1;
    message.msg_control = control.data();
    message.msg_controllen = control.size();
    cmsghdr* header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(count * sizeof(int));
    std::memcpy(CMSG_DATA(header), fds.data(), count * sizeof(int));
    ASSERT_EQ(::sendmsg(ours_.get(), &message, 0), 1);
  }

  absl::StatusOr<Packet> Receive(absl::Duration timeout = absl::Seconds(5)) {
    return ReceivePacket(theirs_.get(), absl::MakeSpan(buffer_), timeout);
  }

  UniqueFd ours_;
  UniqueFd theirs_;
  std::array<std::byte, 64> buffer_{};
};

TEST_F(FdSocketTest, NothingInTimeIsADeadline) {
  EXPECT_THAT(Receive(absl::ZeroDuration()),
              StatusIs(absl::StatusCode::kDeadlineExceeded));
  EXPECT_THAT(Receive(absl::Milliseconds(2)),
              StatusIs(absl::StatusCode::kDeadlineExceeded));
}

TEST_F(FdSocketTest, PeerThatIsGoneIsUnavailableForBothDirections) {
  ours_.reset();
  EXPECT_THAT(Receive(), StatusIs(absl::StatusCode::kUnavailable));
  EXPECT_THAT(SendPacket(theirs_.get(), Bytes("x"), -1, absl::Seconds(5)),
              StatusIs(absl::StatusCode::kUnavailable));
}

TEST_F(FdSocketTest, PacketLongerThanTheBufferIsRefusedWithItsDescriptor) {
  const int before = CountDescriptors();
  ASSERT_THAT(
      SendPacket(ours_.get(), Bytes(std::string(65, 'x')), 2, absl::Seconds(5)),
      IsOk());
  EXPECT_THAT(Receive(), StatusIs(absl::StatusCode::kInvalidArgument,
                                  HasSubstr("longer than 64")));
  EXPECT_EQ(CountDescriptors(), before);
}

TEST_F(FdSocketTest, MoreThanOneDescriptorIsRefusedAndNoneIsKept) {
  const int before = CountDescriptors();
  for (int count : {2, 3, 100, 253}) {
    SendDescriptors(count);
    EXPECT_THAT(Receive(), StatusIs(absl::StatusCode::kInvalidArgument))
        << count;
    EXPECT_EQ(CountDescriptors(), before) << count;
  }
}

TEST_F(FdSocketTest, PacketAfterARefusedOneIsReceived) {
  SendDescriptors(5);
  ASSERT_THAT(SendPacket(ours_.get(), Bytes("next"), -1, absl::Seconds(5)),
              IsOk());
  EXPECT_THAT(Receive(), StatusIs(absl::StatusCode::kInvalidArgument));
  const auto packet = Receive();
  ASSERT_THAT(packet, IsOk());
  EXPECT_EQ(packet->size_bytes, 4u);
}

TEST_F(FdSocketTest, FullPeerIsADeadlineNotAWait) {
  absl::Status sent;
  int count = 0;
  while (sent.ok() && count < 100000) {
    sent = SendPacket(ours_.get(), Bytes(std::string(64, 'x')), -1,
                      absl::ZeroDuration());
    ++count;
  }
  EXPECT_THAT(sent, StatusIs(absl::StatusCode::kDeadlineExceeded));
  EXPECT_THAT(SendPacket(ours_.get(), Bytes("x"), -1, absl::Milliseconds(2)),
              StatusIs(absl::StatusCode::kDeadlineExceeded));
}

TEST_F(FdSocketTest, PacketsKeepTheirBoundsAndDescriptors) {
  const UniqueFd file(::open("/dev/zero", O_RDONLY | O_CLOEXEC));
  ASSERT_THAT(SendPacket(ours_.get(), Bytes("one"), -1, absl::Seconds(5)),
              IsOk());
  ASSERT_THAT(
      SendPacket(ours_.get(), Bytes("three"), file.get(), absl::Seconds(5)),
      IsOk());
  auto one = Receive();
  ASSERT_THAT(one, IsOk());
  EXPECT_EQ(one->size_bytes, 3u);
  EXPECT_FALSE(one->attached);
  auto three = Receive();
  ASSERT_THAT(three, IsOk());
  EXPECT_EQ(three->size_bytes, 5u);
  ASSERT_TRUE(three->attached);
  EXPECT_EQ(::fcntl(three->attached.get(), F_GETFD) & FD_CLOEXEC, FD_CLOEXEC);
  struct stat sent {
  }, received{};
  ASSERT_EQ(::fstat(file.get(), &sent), 0);
  ASSERT_EQ(::fstat(three->attached.get(), &received), 0);
  EXPECT_EQ(sent.st_rdev, received.st_rdev);
}

TEST(FdSocket, PathThatDoesNotFitAnAddressIsRefused) {
  EXPECT_THAT(ListenUnix("/tmp/" + std::string(120, 'x'), 1),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("107")));
  EXPECT_THAT(ConnectUnix("", absl::Seconds(1)),
              StatusIs(absl::StatusCode::kInvalidArgument));
}

TEST(FdSocket, ConnectWithoutListenerIsUnavailable) {
  PrivateDirectory directory;
  const std::string path = directory.path() + "/s";
  EXPECT_THAT(ConnectUnix(path, absl::Seconds(1)),
              StatusIs(absl::StatusCode::kUnavailable));
  ASSERT_THAT(ListenUnix(path, 1), IsOk());  // closed at once, the file stays
  EXPECT_THAT(ConnectUnix(path, absl::Seconds(1)),
              StatusIs(absl::StatusCode::kUnavailable));
  EXPECT_THAT(ListenUnix(path, 1), StatusIs(absl::StatusCode::kAlreadyExists));
}

TEST(FdSocket, ConnectToAFullListenerIsADeadline) {
  PrivateDirectory directory;
  const std::string path = directory.path() + "/s";
  const auto listener = ListenUnix(path, 0);
  ASSERT_THAT(listener, IsOk());
  std::vector<UniqueFd> connected;
  absl::Status status;
  while (status.ok() && connected.size() < 16) {
    auto fd = ConnectUnix(path, absl::Milliseconds(5));
    status = fd.status();
    if (fd.ok()) connected.push_back(*std::move(fd));
  }
  EXPECT_THAT(status, StatusIs(absl::StatusCode::kDeadlineExceeded));
}

TEST(FdSocket, ListenerIsPrivateAndSeesWhoConnects) {
  PrivateDirectory directory;
  const std::string path = directory.path() + "/s";
  const auto listener = ListenUnix(path, 8);
  ASSERT_THAT(listener, IsOk());
  struct stat info {};
  ASSERT_EQ(::lstat(path.c_str(), &info), 0);
  EXPECT_EQ(info.st_mode & 0777, 0600u);
  EXPECT_THAT(AcceptUnix(listener->get()),
              StatusIs(absl::StatusCode::kUnavailable));

  Event done;
  Child child([&] {
    const auto fd = ConnectUnix(path, absl::Seconds(5));
    EXPECT_THAT(fd, IsOk());
    EXPECT_THAT(SendPacket(fd->get(), Bytes("hello"), -1, absl::Seconds(5)),
                IsOk());
    return done.Wait() ? 0 : 1;
  });
  pollfd entry{listener->get(), POLLIN, 0};
  ASSERT_EQ(::poll(&entry, 1, 5000), 1);
  const auto accepted = AcceptUnix(listener->get());
  ASSERT_THAT(accepted, IsOk());
  const auto peer = PeerOf(accepted->get());
  ASSERT_THAT(peer, IsOk());
  EXPECT_EQ(peer->pid, child.pid());
  EXPECT_EQ(peer->uid, ::geteuid());
  done.Set();
  EXPECT_EQ(child.Join(), 0);
}

}  // namespace
}  // namespace moebius
