// The vault against malformed and malicious packets of processes that it
// listens to.
#include <fcntl.h>
#include <sched.h>

#include <climits>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/unit/worker/memory/vault_fixture.h"

namespace moebius {
namespace {

using testing::HasSubstr;
using Type = VaultMessageType;

class VaultHostileTest : public VaultTest {
 protected:
  VaultHostileTest() {
    memory_ = Memory(8192);
    descriptors_ = CountDescriptors() + 1;  // with the one that is kept
    vault_->Allow(::getpid(), 0);
    EXPECT_THAT(NewClient()->Deposit(RegionKind::kExperts, RegionClass::kMemfd,
                                     memory_.get(), 8192, kLong),
                IsOk());
  }

  // The vault serves as before and has kept and reported nothing.
  void ExpectUnmoved() {
    EXPECT_EQ(vault_->NumKept(0), 1);
    for (Rank rank = 1; rank < kMaxRanks; ++rank) {
      EXPECT_EQ(vault_->NumKept(rank), 0);
    }
    EXPECT_TRUE(reports_.empty());
    const auto mine = NewClient()->Withdraw(RegionKind::kExperts, kLong);
    ASSERT_THAT(mine, IsOk());
    EXPECT_TRUE(SameFile(mine->fd.get(), memory_.get()));
  }

  void ExpectHangUp(const VaultMessage& message, int attach = -1) {
    const UniqueFd socket = RawSocket();
    ASSERT_THAT(SendRaw(socket, &message, sizeof(message), attach), IsOk());
    EXPECT_TRUE(HungUp(socket));
    ExpectUnmoved();
  }

  UniqueFd memory_;
  int descriptors_ = 0;
};

TEST_F(VaultHostileTest, PacketsOfAnotherSizeEndTheConnection) {
  const std::vector<char> bytes(4096, 0);
  for (size_t size : {1, 4, 255, 257, 4096}) {
    const UniqueFd socket = RawSocket();
    ASSERT_THAT(SendRaw(socket, bytes.data(), size, 2), IsOk());
    EXPECT_TRUE(HungUp(socket)) << size;
  }
  const UniqueFd empty = RawSocket();
  ASSERT_THAT(SendRaw(empty, bytes.data(), 0), IsOk());
  EXPECT_TRUE(HungUp(empty));
  ExpectUnmoved();
}

TEST_F(VaultHostileTest, UnknownTypesRegionsAndRanksEndTheConnection) {
  // Replacing and asking who is who is the coordinator's.
  for (int type : {0, 4, 8, 9, 10, 255}) {
    ExpectHangUp({.type = static_cast<Type>(type)});
  }
  for (int region : {5, 100, 255}) {
    ExpectHangUp(
        {.type = Type::kWithdraw, .region = static_cast<RegionKind>(region)});
    ExpectHangUp({.type = Type::kDeposit,
                  .region = static_cast<RegionKind>(region),
                  .size_bytes = 8192},
                 memory_.get());
  }
  for (int of_class : {kNumRegionClasses, 255}) {
    ExpectHangUp({.type = Type::kDeposit,
                  .size_bytes = 8192,
                  .region_class = static_cast<RegionClass>(of_class)},
                 memory_.get());
  }
  for (int rank : {-2, -1, kMaxRanks, 1 << 30, INT_MIN}) {
    ExpectHangUp({.type = Type::kBorrow, .rank = rank});
  }
  ExpectHangUp({.type = Type::kWithdraw, .ok = 1});
  ExpectHangUp({.type = Type::kWithdraw, .answers = 1});
}

TEST_F(VaultHostileTest, SpeakingForAnotherRankEndsTheConnection) {
  for (Type type :
       {Type::kWithdraw, Type::kProgress, Type::kReady, Type::kFailed}) {
    ExpectHangUp({.type = type, .rank = 1});
    ExpectHangUp({.type = type, .rank = -1});
  }
  ExpectHangUp({.type = Type::kDeposit, .rank = 1, .size_bytes = 8192},
               memory_.get());
}

TEST_F(VaultHostileTest, DescriptorsWhereNoneBelongEndTheConnection) {
  for (Type type : {Type::kWithdraw, Type::kBorrow, Type::kProgress,
                    Type::kReady, Type::kFailed}) {
    ExpectHangUp({.type = type}, memory_.get());
  }
  ExpectHangUp(
      {.type = Type::kDeposit, .region = RegionKind::kKv, .size_bytes = 8192});
}

TEST_F(VaultHostileTest, ImpossibleReportsEndTheConnection) {
  ExpectHangUp({.type = Type::kProgress, .size_bytes = 1, .done_bytes = 2});
  ExpectHangUp({.type = Type::kReady, .port = 65536});
  ExpectHangUp({.type = Type::kReady, .port = 80, .admin_port = -1});
  VaultMessage endless{.type = Type::kFailed};
  std::memset(endless.text, 'x', sizeof(endless.text));
  ExpectHangUp(endless);
}

TEST_F(VaultHostileTest, MemoryThatCannotBeKeptSafelyIsRefused) {
  const auto client = NewClient();
  const auto deposit = [&](const UniqueFd& fd, uint64_t size) {
    return client->Deposit(RegionKind::kKv, RegionClass::kMemfd, fd.get(), size,
                           kLong);
  };
  const auto refused = [](absl::string_view why) {
    return StatusIs(absl::StatusCode::kFailedPrecondition,
                    HasSubstr(std::string(why)));
  };
  EXPECT_THAT(deposit(Memory(4096), 8192), refused("bytes"));
  EXPECT_THAT(deposit(Memory(4096), 0), refused("bytes"));
  EXPECT_THAT(deposit(Memory(4096), UINT64_MAX), refused("bytes"));
  EXPECT_THAT(deposit(Memory(4096, F_SEAL_GROW | F_SEAL_SEAL), 4096),
              refused("seals"));
  EXPECT_THAT(deposit(Memory(4096, kSeals | F_SEAL_FUTURE_WRITE), 4096),
              refused("seals"));
  EXPECT_THAT(deposit(Memory(4096, 0), 4096), refused("seals"));
  const UniqueFd device(::open("/dev/zero", O_RDWR | O_CLOEXEC));
  EXPECT_THAT(deposit(device, 4096), refused("not a memfd"));
  const UniqueFd file(::open("/proc/self/exe", O_RDONLY | O_CLOEXEC));
  EXPECT_FALSE(deposit(file, 4096).ok());
  const UniqueFd socket = RawSocket();
  EXPECT_THAT(deposit(socket, 4096), refused("not a memfd"));
  const UniqueFd memory = Memory(4096);
  const UniqueFd read_only(
      ::open(("/proc/self/fd/" + std::to_string(memory.get())).c_str(),
             O_RDONLY | O_CLOEXEC));
  EXPECT_THAT(deposit(read_only, 4096), refused("reading and writing"));
  ExpectUnmoved();
  EXPECT_THAT(deposit(memory, 4096), IsOk());  // the connection lives
}

TEST_F(VaultHostileTest, SecondDepositOfARegionIsRefused) {
  const UniqueFd other = Memory(8192);
  EXPECT_THAT(
      NewClient()->Deposit(RegionKind::kExperts, RegionClass::kMemfd,
                           other.get(), 8192, kLong),
      StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr("already")));
  ExpectUnmoved();
}

TEST_F(VaultHostileTest, PeerThatReadsNoAnswersIsDisconnected) {
  const UniqueFd socket = RawSocket();
  const VaultMessage withdraw{.type = Type::kWithdraw};
  absl::Status sent;
  for (int i = 0; i < 100000 && sent.ok(); ++i) {
    sent = SendRaw(socket, &withdraw, sizeof(withdraw));
  }
  EXPECT_THAT(sent, StatusIs(absl::StatusCode::kUnavailable));
  ExpectUnmoved();
}

TEST_F(VaultHostileTest, RandomPacketsChangeNothingAndLeakNothing) {
  std::mt19937 random(20260726);
  for (int round = 0; round < 2000; ++round) {
    VaultMessage message;
    auto* const bytes = reinterpret_cast<unsigned char*>(&message);
    size_t size = sizeof(message);
    // Half of them bits flipped in a good message, half noise of any size.
    if (round % 2 == 0) {
      message.type = static_cast<Type>(1 + random() % 7);
      for (int i = 0; i < 3; ++i) bytes[random() % 12] ^= 1 << random() % 8;
    } else {
      for (size_t i = 0; i < size; ++i) bytes[i] = random();
      size = random() % (size + 1);
    }
    // What would be right is not hostile.
    if (message.rank == 0 &&
        (message.type == Type::kProgress || message.type == Type::kReady ||
         message.type == Type::kFailed)) {
      continue;
    }
    const UniqueFd socket = RawSocket();
    ASSERT_THAT(SendRaw(socket, bytes, size, random() % 4 == 0 ? 2 : -1),
                IsOk());
    // The vault has read it when this, behind it, is answered or refused.
    const VaultMessage end{.type = Type::kDescriptor};
    const absl::Status sent = SendRaw(socket, &end, sizeof(end));
    ASSERT_TRUE(sent.ok() || absl::IsUnavailable(sent)) << sent;
    ASSERT_TRUE(HungUp(socket));
  }
  ExpectUnmoved();
  // The vault closes its end of the last connections when it sees ours closed.
  const absl::Time limit = absl::Now() + kLong;
  while (CountDescriptors() != descriptors_ && absl::Now() < limit) {
    ::sched_yield();
  }
  EXPECT_EQ(CountDescriptors(), descriptors_);
}

TEST_F(VaultHostileTest, CoordinatorHasNoBusinessWithMemory) {
  vault_->Allow(::getpid(), kCoordinatorRank);
  for (Type type : {Type::kWithdraw, Type::kBorrow}) {
    const UniqueFd socket = RawSocket();
    const VaultMessage message{.type = type,
                               .rank = type == Type::kBorrow ? 0 : -1};
    ASSERT_THAT(SendRaw(socket, &message, sizeof(message)), IsOk());
    EXPECT_TRUE(HungUp(socket));
  }
}

}  // namespace
}  // namespace moebius
