#include "deploy/vault.h"

#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>

#include <cstring>
#include <deque>
#include <optional>
#include <random>
#include <vector>

#include "absl/synchronization/mutex.h"
#include "common/fd_socket.h"
#include "common/vault_client.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/status_matchers.h"
#include "tests/unit/memory/processes.h"

namespace moebius {
namespace {

using testing::HasSubstr;
using Type = VaultMessageType;

constexpr absl::Duration kLong = absl::Seconds(10);
constexpr int kSeals = F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL;

UniqueFd Memory(uint64_t size_bytes, int seals = kSeals) {
  UniqueFd fd(::memfd_create("test", MFD_CLOEXEC | MFD_ALLOW_SEALING));
  EXPECT_EQ(::ftruncate(fd.get(), static_cast<off_t>(size_bytes)), 0);
  EXPECT_EQ(::fcntl(fd.get(), F_ADD_SEALS, seals), 0);
  return fd;
}

bool SameFile(int a, int b) {
  struct stat x {
  }, y{};
  EXPECT_EQ(::fstat(a, &x), 0);
  EXPECT_EQ(::fstat(b, &y), 0);
  return x.st_ino == y.st_ino && x.st_dev == y.st_dev;
}

int AccessMode(int fd) { return ::fcntl(fd, F_GETFL) & O_ACCMODE; }

// The vault's reports in order, to be waited for.
class Reports {
 public:
  Vault::Callback callback() {
    return [this](const VaultReport& report) {
      absl::MutexLock lock(&mutex_);
      reports_.push_back(report);
    };
  }
  // The next one, or nothing within kLong.
  std::optional<VaultReport> Next() {
    absl::MutexLock lock(&mutex_);
    const auto any = [this] { return !reports_.empty(); };
    if (!mutex_.AwaitWithTimeout(absl::Condition(&any), kLong)) return {};
    VaultReport report = std::move(reports_.front());
    reports_.pop_front();
    return report;
  }
  bool empty() {
    absl::MutexLock lock(&mutex_);
    return reports_.empty();
  }

 private:
  absl::Mutex mutex_;
  std::deque<VaultReport> reports_;
};

// This process plays the worker of rank 0, on as many connections as it likes.
class VaultTest : public testing::Test {
 protected:
  VaultTest() { StartVault({}); }

  void StartVault(VaultOptions options) {
    vault_.reset();
    auto vault = Vault::Start(directory_.path(), reports_.callback(), options);
    ASSERT_THAT(vault, IsOk());
    vault_ = *std::move(vault);
  }

  std::unique_ptr<VaultClient> NewClient(Rank rank = 0) {
    auto client = VaultClient::Connect(directory_.path(), rank, kLong);
    EXPECT_THAT(client, IsOk());
    return *std::move(client);
  }

  // A connection without the client's manners.
  UniqueFd RawSocket() {
    auto socket = ConnectUnix(
        directory_.path() + "/" + std::string(kVaultSocketName), kLong);
    EXPECT_THAT(socket, IsOk());
    return *std::move(socket);
  }

  static absl::Status SendRaw(const UniqueFd& socket, const void* bytes,
                              size_t size, int attach = -1) {
    return SendPacket(socket.get(),
                      {static_cast<const std::byte*>(bytes), size}, attach,
                      kLong);
  }

  // Waits until the vault has hung up, throwing away what it sends before.
  static bool HungUp(const UniqueFd& socket) {
    for (int i = 0; i < 1000; ++i) {
      VaultMessage message;
      const auto packet = ReceivePacket(
          socket.get(),
          {reinterpret_cast<std::byte*>(&message), sizeof(message)}, kLong);
      if (absl::IsUnavailable(packet.status())) return true;
      if (!packet.ok()) return false;
    }
    return false;
  }

  PrivateDirectory directory_;
  Reports reports_;
  std::unique_ptr<Vault> vault_;
};

// --- the directory ---------------------------------------------------------

TEST(VaultDirectory, OthersThanPrivateOnesAreRefused) {
  PrivateDirectory directory;
  const auto start = [&](const std::string& path) {
    return Vault::Start(path, [](const VaultReport&) {}).status();
  };
  for (mode_t mode : {0755, 0701, 0777, 01700, 0500}) {
    ASSERT_EQ(::chmod(directory.path().c_str(), mode), 0);
    EXPECT_THAT(start(directory.path()),
                StatusIs(absl::StatusCode::kPermissionDenied,
                         HasSubstr("must be 0700")))
        << std::oct << mode;
  }
  ASSERT_EQ(::chmod(directory.path().c_str(), 0700), 0);
  const std::string link = directory.path() + "/link";
  ASSERT_EQ(::symlink(directory.path().c_str(), link.c_str()), 0);
  EXPECT_FALSE(start(link).ok());
  EXPECT_FALSE(start(directory.path() + "/none").ok());
  EXPECT_FALSE(start("/dev/null").ok());
  EXPECT_THAT(start(directory.path()), IsOk());
}

TEST(VaultDirectory, AnothersIsRefused) {
  if (::geteuid() != 0) {
    GTEST_SKIP() << "only root can give a directory away";
  }
  PrivateDirectory directory;
  ASSERT_EQ(::chown(directory.path().c_str(), 65534, 65534), 0);
  EXPECT_THAT(Vault::Start(directory.path(), [](const VaultReport&) {}),
              StatusIs(absl::StatusCode::kPermissionDenied));
}

TEST_F(VaultTest, SecondVaultInADirectoryIsRefused) {
  EXPECT_THAT(Vault::Start(directory_.path(), reports_.callback()),
              StatusIs(absl::StatusCode::kAlreadyExists));
}

TEST_F(VaultTest, SocketIsRemovedAtTheEnd) {
  const std::string path =
      directory_.path() + "/" + std::string(kVaultSocketName);
  struct stat info {};
  EXPECT_EQ(::lstat(path.c_str(), &info), 0);
  vault_.reset();
  EXPECT_EQ(::lstat(path.c_str(), &info), -1);
}

// --- who may speak ---------------------------------------------------------

TEST_F(VaultTest, ProcessThatNobodyAllowedIsDisconnectedUnheard) {
  StartVault({.stranger_timeout = absl::Milliseconds(20)});
  const auto client = NewClient();
  EXPECT_THAT(client->Ready(), IsOk());  // sent, never read
  const UniqueFd memory = Memory(4096);
  EXPECT_THAT(client->Deposit(RegionKind::kKv, memory.get(), 4096, kLong),
              StatusIs(absl::StatusCode::kUnavailable));
  EXPECT_EQ(vault_->NumKept(0), 0);
  EXPECT_TRUE(reports_.empty());
}

TEST_F(VaultTest, ProcessThatConnectsBeforeItIsAllowedIsHeardThen) {
  const auto client = NewClient();
  ASSERT_THAT(client->Ready(), IsOk());
  vault_->Allow(::getpid(), 0);
  const auto report = reports_.Next();
  ASSERT_TRUE(report.has_value());
  EXPECT_EQ(report->type, Type::kReady);
  EXPECT_EQ(report->pid, ::getpid());
}

TEST_F(VaultTest, StrangersAreBounded) {
  std::vector<UniqueFd> sockets;
  for (int i = 0; i < 40; ++i) sockets.push_back(RawSocket());
  EXPECT_TRUE(HungUp(sockets.back()));
  vault_->Allow(::getpid(), 0);
  const auto client = NewClient();
  EXPECT_THAT(client->Withdraw(RegionKind::kKv, kLong),
              StatusIs(absl::StatusCode::kNotFound));
}

TEST_F(VaultTest, ConnectionsAreBounded) {
  vault_->Allow(::getpid(), 0);
  std::vector<UniqueFd> sockets;
  for (int i = 0; i < Vault::kMaxConnections; ++i) {
    sockets.push_back(RawSocket());
  }
  EXPECT_TRUE(HungUp(RawSocket()));
  sockets.clear();  // makes room, once the vault has seen it
  bool answered = false;
  for (int i = 0; i < 1000 && !answered; ++i) {
    answered = absl::IsNotFound(
        NewClient()->Withdraw(RegionKind::kKv, kLong).status());
  }
  EXPECT_TRUE(answered);
}

TEST_F(VaultTest, ProcessOfAnotherUserIsRefused) {
  if (::geteuid() != 0) GTEST_SKIP() << "only root can become another user";
  const std::string path =
      directory_.path() + "/" + std::string(kVaultSocketName);
  // As if the directory and the socket protected nothing.
  ASSERT_EQ(::chmod(directory_.path().c_str(), 0711), 0);
  ASSERT_EQ(::chmod(path.c_str(), 0777), 0);
  Event allowed;
  Child child([&] {
    if (!allowed.Wait() || ::setuid(65534) != 0) return 1;
    return HungUp(RawSocket()) ? 0 : 2;
  });
  vault_->Allow(child.pid(), 0);
  allowed.Set();
  EXPECT_EQ(child.Join(), 0);
}

TEST_F(VaultTest, PrivateDirectoryKeepsOtherUsersAway) {
  if (::geteuid() != 0) GTEST_SKIP() << "only root can become another user";
  Child child([&] {
    if (::setuid(65534) != 0) return 1;
    return ConnectUnix(directory_.path() + "/" + std::string(kVaultSocketName),
                       kLong)
                   .ok()
               ? 2
               : 0;
  });
  EXPECT_EQ(child.Join(), 0);
}

TEST_F(VaultTest, NewProcessOfARankReplacesTheOld) {
  vault_->Allow(::getpid(), 3);
  const UniqueFd socket = RawSocket();
  VaultMessage ready{.type = Type::kReady, .rank = 3};
  ASSERT_THAT(SendRaw(socket, &ready, sizeof(ready)), IsOk());
  ASSERT_TRUE(reports_.Next().has_value());
  Event go;
  Child child([&] { return go.Wait() ? 0 : 1; });
  vault_->Allow(child.pid(), 3);
  EXPECT_TRUE(HungUp(socket));
  go.Set();
  EXPECT_EQ(child.Join(), 0);
}

TEST_F(VaultTest, DisallowEndsAProcessAndGivesItsLastWords) {
  vault_->Allow(::getpid(), 0);
  const auto client = NewClient();
  ASSERT_THAT(client->Failed("no\nsuch\x1b[31m file"), IsOk());
  // Read already or still in the socket: the answer is the same.
  EXPECT_EQ(vault_->Disallow(::getpid()), "no such [31m file");
  const auto report = reports_.Next();
  ASSERT_TRUE(report.has_value());
  EXPECT_EQ(report->type, Type::kFailed);
  EXPECT_EQ(report->text, "no such [31m file");
  EXPECT_THAT(client->Withdraw(RegionKind::kKv, kLong),
              StatusIs(absl::StatusCode::kUnavailable));
  EXPECT_EQ(vault_->Disallow(::getpid()), "");
}

TEST_F(VaultTest, DepositsUnreadWhenAProcessIsDisallowedAreVoid) {
  Child child([&] {
    // Connected as a stranger: not read until allowed.
    const UniqueFd socket = RawSocket();
    const UniqueFd memory = Memory(4096);
    VaultMessage deposit{.type = Type::kDeposit, .size_bytes = 4096};
    EXPECT_THAT(SendRaw(socket, &deposit, sizeof(deposit), memory.get()),
                IsOk());
    VaultMessage failed{.type = Type::kFailed};
    std::strcpy(failed.text, "out of luck");
    EXPECT_THAT(SendRaw(socket, &failed, sizeof(failed)), IsOk());
    return 0;
  });
  const pid_t pid = child.pid();
  EXPECT_EQ(child.Join(), 0);
  vault_->Allow(pid, 0);
  EXPECT_EQ(vault_->Disallow(pid), "out of luck");
  vault_->Forget(0);
  EXPECT_EQ(vault_->NumKept(0), 0);
}

// --- hostile bytes ---------------------------------------------------------

class VaultHostileTest : public VaultTest {
 protected:
  VaultHostileTest() {
    memory_ = Memory(8192);
    descriptors_ = CountDescriptors() + 1;  // with the one that is kept
    vault_->Allow(::getpid(), 0);
    EXPECT_THAT(
        NewClient()->Deposit(RegionKind::kExperts, memory_.get(), 8192, kLong),
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
  for (int type : {0, 4, 8, 255}) {
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
    return client->Deposit(RegionKind::kKv, fd.get(), size, kLong);
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
      NewClient()->Deposit(RegionKind::kExperts, other.get(), 8192, kLong),
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

// --- service ---------------------------------------------------------------

TEST_F(VaultTest, DeniesWhatItDoesNotKeep) {
  vault_->Allow(::getpid(), 0);
  const auto client = NewClient();
  EXPECT_THAT(client->Withdraw(RegionKind::kKv, kLong),
              StatusIs(absl::StatusCode::kNotFound));
  EXPECT_THAT(client->Borrow(RegionKind::kKv, 1, absl::Milliseconds(5)),
              StatusIs(absl::StatusCode::kDeadlineExceeded));
}

TEST_F(VaultTest, DenseRegionsAreNotForPeers) {
  vault_->Allow(::getpid(), 0);
  const auto client = NewClient();
  const UniqueFd memory = Memory(4096);
  ASSERT_THAT(client->Deposit(RegionKind::kDense, memory.get(), 4096, kLong),
              IsOk());
  EXPECT_THAT(client->Borrow(RegionKind::kDense, 0, kLong),
              StatusIs(absl::StatusCode::kFailedPrecondition,
                       HasSubstr("not for peers")));
  EXPECT_THAT(client->Withdraw(RegionKind::kDense, kLong), IsOk());
}

TEST_F(VaultTest, OwnerWithdrawsForWritingPeersBorrowForReading) {
  vault_->Allow(::getpid(), 0);
  const auto client = NewClient();
  for (RegionKind kind : {RegionKind::kExperts, RegionKind::kKv,
                          RegionKind::kExchange, RegionKind::kSignals}) {
    const UniqueFd memory = Memory(4096);
    ASSERT_THAT(client->Deposit(kind, memory.get(), 4096, kLong), IsOk());
    const auto own = client->Withdraw(kind, kLong);
    ASSERT_THAT(own, IsOk());
    EXPECT_TRUE(SameFile(own->fd.get(), memory.get()));
    EXPECT_EQ(own->size_bytes, 4096u);
    EXPECT_EQ(AccessMode(own->fd.get()), O_RDWR);
    const auto borrowed = client->Borrow(kind, 0, kLong);
    ASSERT_THAT(borrowed, IsOk());
    EXPECT_TRUE(SameFile(borrowed->fd.get(), memory.get()));
    EXPECT_EQ(AccessMode(borrowed->fd.get()),
              kind == RegionKind::kSignals ? O_RDWR : O_RDONLY);
  }
  EXPECT_EQ(vault_->NumKept(0), 4);
}

TEST_F(VaultTest, BorrowedMemoryCannotBeOpenedForWritingByAPlainUser) {
  vault_->Allow(::getpid(), 0);
  const UniqueFd memory = Memory(4096);
  const auto client = NewClient();
  ASSERT_THAT(client->Deposit(RegionKind::kKv, memory.get(), 4096, kLong),
              IsOk());
  const auto borrowed = client->Borrow(RegionKind::kKv, 0, kLong);
  ASSERT_THAT(borrowed, IsOk());
  struct stat info {};
  ASSERT_EQ(::fstat(borrowed->fd.get(), &info), 0);
  EXPECT_EQ(info.st_mode & 0777, 0400u);
}

TEST_F(VaultTest, BorrowWaitsForTheDeposit) {
  vault_->Allow(::getpid(), 2);
  const UniqueFd socket = RawSocket();
  const VaultMessage borrow{
      .type = Type::kBorrow, .region = RegionKind::kExchange, .rank = 2};
  ASSERT_THAT(SendRaw(socket, &borrow, sizeof(borrow)), IsOk());
  const auto client = NewClient(2);
  const UniqueFd memory = Memory(4096);
  ASSERT_THAT(client->Deposit(RegionKind::kExchange, memory.get(), 4096, kLong),
              IsOk());
  VaultMessage answer;
  const auto packet = ReceivePacket(
      socket.get(), {reinterpret_cast<std::byte*>(&answer), sizeof(answer)},
      kLong);
  ASSERT_THAT(packet, IsOk());
  EXPECT_EQ(answer.type, Type::kDescriptor);
  EXPECT_EQ(answer.ok, 1);
  EXPECT_TRUE(SameFile(packet->attached.get(), memory.get()));
}

TEST_F(VaultTest, AnswerToABorrowGivenUpIsNotTakenForAnother) {
  vault_->Allow(::getpid(), 0);
  const auto client = NewClient();
  const UniqueFd kv = Memory(4096);
  const UniqueFd experts = Memory(8192);
  ASSERT_THAT(client->Borrow(RegionKind::kKv, 0, absl::Milliseconds(1)),
              StatusIs(absl::StatusCode::kDeadlineExceeded));
  // The deposit releases the borrow given up, whose answer now comes first.
  ASSERT_THAT(client->Deposit(RegionKind::kKv, kv.get(), 4096, kLong), IsOk());
  ASSERT_THAT(client->Deposit(RegionKind::kExperts, experts.get(), 8192, kLong),
              IsOk());
  const auto own = client->Withdraw(RegionKind::kExperts, kLong);
  ASSERT_THAT(own, IsOk());
  EXPECT_TRUE(SameFile(own->fd.get(), experts.get()));
}

TEST_F(VaultTest, ForgottenRankMayDepositAnew) {
  vault_->Allow(::getpid(), 0);
  const auto client = NewClient();
  const UniqueFd memory = Memory(4096);
  ASSERT_THAT(client->Deposit(RegionKind::kKv, memory.get(), 4096, kLong),
              IsOk());
  vault_->Forget(0);
  EXPECT_EQ(vault_->NumKept(0), 0);
  EXPECT_THAT(client->Withdraw(RegionKind::kKv, kLong),
              StatusIs(absl::StatusCode::kNotFound));
  EXPECT_THAT(client->Deposit(RegionKind::kKv, memory.get(), 4096, kLong),
              IsOk());
}

TEST_F(VaultTest, ReportsArriveInOrderWithWhatTheySay) {
  vault_->Allow(::getpid(), kCoordinatorRank);
  const auto client = NewClient(kCoordinatorRank);
  ASSERT_THAT(client->Progress(0, 100), IsOk());
  ASSERT_THAT(client->Progress(100, 100), IsOk());
  ASSERT_THAT(client->Ready(8000, 8001), IsOk());
  ASSERT_THAT(client->Failed(std::string(1000, 'y')), IsOk());
  const auto first = reports_.Next();
  ASSERT_TRUE(first.has_value());
  EXPECT_EQ(first->type, Type::kProgress);
  EXPECT_EQ(first->rank, kCoordinatorRank);
  EXPECT_EQ(first->done_bytes, 0u);
  EXPECT_EQ(first->total_bytes, 100u);
  EXPECT_EQ(reports_.Next()->done_bytes, 100u);
  const auto ready = reports_.Next();
  EXPECT_EQ(ready->port, 8000);
  EXPECT_EQ(ready->admin_port, 8001);
  EXPECT_EQ(reports_.Next()->text,
            std::string(sizeof(VaultMessage{}.text) - 1, 'y'));
}

TEST_F(VaultTest, ProgressOfEveryBlockIsSentRarely) {
  vault_->Allow(::getpid(), 0);
  const auto client = NewClient();
  const absl::Time start = absl::Now();
  for (uint64_t done = 0; done <= 100000; ++done) {
    ASSERT_THAT(client->Progress(done, 100000), IsOk());
  }
  const int most = 2 + static_cast<int>((absl::Now() - start) /
                                        VaultClient::kProgressPeriod);
  int count = 0;
  uint64_t done = 0;
  while (done < 100000) {
    const auto report = reports_.Next();
    ASSERT_TRUE(report.has_value());
    EXPECT_GE(report->done_bytes, done);
    done = report->done_bytes;
    ++count;
  }
  EXPECT_LE(count, most);
  EXPECT_GE(count, 2);  // the first and the last
}

TEST_F(VaultTest, CallbackMayUseTheVault) {
  absl::Mutex mutex;
  int kept = -1;
  vault_.reset();
  auto vault = Vault::Start(directory_.path(), [&](const VaultReport& report) {
    vault_->Forget(report.rank);
    absl::MutexLock lock(&mutex);
    kept = vault_->NumKept(report.rank);
  });
  ASSERT_THAT(vault, IsOk());
  vault_ = *std::move(vault);
  vault_->Allow(::getpid(), 0);
  const auto client = NewClient();
  const UniqueFd memory = Memory(4096);
  ASSERT_THAT(client->Deposit(RegionKind::kKv, memory.get(), 4096, kLong),
              IsOk());
  ASSERT_THAT(client->Ready(), IsOk());
  const auto called = [&] { return kept >= 0; };
  absl::MutexLock lock(&mutex);
  EXPECT_TRUE(mutex.AwaitWithTimeout(absl::Condition(&called), kLong));
  EXPECT_EQ(kept, 0);
}

TEST_F(VaultTest, ClientSeesTheVaultEnd) {
  vault_->Allow(::getpid(), 0);
  const auto client = NewClient();
  EXPECT_THAT(client->Withdraw(RegionKind::kKv, kLong),
              StatusIs(absl::StatusCode::kNotFound));
  vault_.reset();
  pollfd entry{client->fd(), POLLIN, 0};
  EXPECT_EQ(::poll(&entry, 1, 5000), 1);
  EXPECT_THAT(client->Ready(), StatusIs(absl::StatusCode::kUnavailable));
  EXPECT_THAT(client->Borrow(RegionKind::kKv, 1, kLong),
              StatusIs(absl::StatusCode::kUnavailable));
}

TEST_F(VaultTest, SurvivesRunningOutOfDescriptors) {
  Child child([&] {
    PrivateDirectory directory;
    Reports reports;
    auto vault = Vault::Start(directory.path(), reports.callback());
    if (!vault.ok()) return 1;
    (*vault)->Allow(::getpid(), 0);
    const std::string path =
        directory.path() + "/" + std::string(kVaultSocketName);
    // Use the table up, then connect: our end takes the last place.
    std::vector<UniqueFd> held;
    for (;;) {
      UniqueFd fd(::fcntl(2, F_DUPFD_CLOEXEC, 0));
      if (!fd || held.size() > 100000) break;
      held.push_back(std::move(fd));
    }
    held.pop_back();
    const auto refused = ConnectUnix(path, kLong);
    if (!refused.ok() || !HungUp(*refused)) return 2;
    held.clear();
    const auto client = VaultClient::Connect(directory.path(), 0, kLong);
    if (!client.ok()) return 3;
    return absl::IsNotFound(
               (*client)->Withdraw(RegionKind::kKv, kLong).status())
               ? 0
               : 4;
  });
  EXPECT_EQ(child.Join(), 0);
}

TEST(VaultDescriptors, CountReturnsToTheStart) {
  PrivateDirectory directory;
  Reports reports;
  const int before = CountDescriptors();
  for (int round = 0; round < 3; ++round) {
    auto vault = Vault::Start(directory.path(), reports.callback());
    ASSERT_THAT(vault, IsOk());
    (*vault)->Allow(::getpid(), 0);
    auto client = VaultClient::Connect(directory.path(), 0, kLong);
    ASSERT_THAT(client, IsOk());
    for (int i = 0; i < kNumRegionKinds; ++i) {
      const auto kind = static_cast<RegionKind>(i);
      const UniqueFd memory = Memory(4096);
      ASSERT_THAT((*client)->Deposit(kind, memory.get(), 4096, kLong), IsOk());
      ASSERT_THAT((*client)->Withdraw(kind, kLong), IsOk());
      if (kind != RegionKind::kDense) {
        ASSERT_THAT((*client)->Borrow(kind, 0, kLong), IsOk());
      }
    }
  }
  EXPECT_EQ(CountDescriptors(), before);
}

}  // namespace
}  // namespace moebius
