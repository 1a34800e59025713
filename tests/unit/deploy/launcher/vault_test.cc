#include "deploy/launcher/vault.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/stat.h>

#include <cstring>
#include <string>
#include <vector>

#include "absl/synchronization/mutex.h"
#include "common/base/lasting_failure.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/unit/worker/memory/vault_fixture.h"

namespace moebius {
namespace {

using testing::HasSubstr;
using Type = VaultMessageType;

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
  EXPECT_THAT(client->Deposit(RegionKind::kKv, RegionClass::kMemfd,
                              memory.get(), 4096, kLong),
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

TEST_F(VaultTest, TheCoordinatorHearsWhoSpeaksForWhom) {
  vault_->Allow(::getpid(), -1);
  Event go;
  Child worker([&] { return go.Wait() ? 0 : 1; });
  vault_->Allow(worker.pid(), 3);
  const auto client = NewClient(-1);
  const auto rank = client->WhoIs(worker.pid(), kLong);
  ASSERT_THAT(rank, IsOk());
  EXPECT_EQ(*rank, 3);
  // Neither strangers, nor itself, nor one that is no more.
  for (pid_t pid : {::getppid(), ::getpid(), 1, 0, -1}) {
    const auto nobody = client->WhoIs(pid, kLong);
    ASSERT_THAT(nobody, IsOk());
    EXPECT_FALSE(nobody->has_value()) << pid;
  }
  vault_->Disallow(worker.pid());
  const auto gone = client->WhoIs(worker.pid(), kLong);
  ASSERT_THAT(gone, IsOk());
  EXPECT_FALSE(gone->has_value());
  go.Set();
  EXPECT_EQ(worker.Join(), 0);
}

TEST_F(VaultTest, OnlyTheCoordinatorSaysThatItGetsOn) {
  vault_->Allow(::getpid(), -1);
  ASSERT_THAT(NewClient(-1)->Alive(), IsOk());
  const auto report = reports_.Next();
  ASSERT_TRUE(report.has_value());
  EXPECT_EQ(report->type, Type::kAlive);
  vault_->Allow(::getpid(), 3);
  const UniqueFd socket = RawSocket();
  VaultMessage alive{.type = Type::kAlive, .rank = 3};
  ASSERT_THAT(SendRaw(socket, &alive, sizeof(alive)), IsOk());
  EXPECT_TRUE(HungUp(socket));
}

TEST_F(VaultTest, TheCoordinatorHearsWhyAWorkerDoesNotStayUp) {
  vault_->Allow(::getpid(), -1);
  const auto client = NewClient(-1);
  const auto trouble_of = [&](Rank rank) {
    return client->NewsOf(rank, kLong)
        .value_or(WorkerNews{.trouble = "no answer"})
        .trouble;
  };
  EXPECT_EQ(trouble_of(1), "");
  vault_->SetTrouble(1, "it dies");
  EXPECT_EQ(trouble_of(1), "it dies");
  EXPECT_EQ(trouble_of(0), "");
  vault_->SetTrouble(1, std::string(1000, 'x'));
  EXPECT_EQ(trouble_of(1), std::string(sizeof(VaultMessage::text) - 1, 'x'));
  vault_->SetTrouble(1, "");
  EXPECT_EQ(trouble_of(1), "");
}

TEST_F(VaultTest, TheCoordinatorHearsWhetherAWorkerIsThere) {
  vault_->Allow(::getpid(), -1);
  const auto client = NewClient(-1);
  EXPECT_EQ(client->NewsOf(1, kLong)->incarnation, Incarnation{});
  Event go;
  Child worker([&] { return go.Wait() ? 0 : 1; });
  vault_->Allow(worker.pid(), 1, 7);
  EXPECT_EQ(client->NewsOf(1, kLong)->incarnation, Incarnation{7});
  vault_->Disallow(worker.pid());
  EXPECT_EQ(client->NewsOf(1, kLong)->incarnation, Incarnation{});
  go.Set();
  EXPECT_EQ(worker.Join(), 0);
}

TEST_F(VaultTest, TheCoordinatorHearsHowFarAWorkerHasLoaded) {
  vault_->Allow(::getpid(), -1);
  Event go;
  Child worker([&] {
    auto client = VaultClient::Connect(directory_.path(), 1, kLong);
    if (!client.ok() || !(*client)->Progress(300, 400).ok()) return 1;
    return go.Wait() ? 0 : 2;
  });
  vault_->Allow(worker.pid(), 1);
  ASSERT_TRUE(reports_.Next().has_value());
  const auto client = NewClient(-1);
  const auto news = client->NewsOf(1, kLong);
  ASSERT_THAT(news, IsOk());
  EXPECT_EQ(news->done_bytes, 300u);
  EXPECT_EQ(news->total_bytes, 400u);
  EXPECT_EQ(client->NewsOf(0, kLong)->total_bytes, 0u);
  // What comes after it begins anew.
  vault_->Disallow(worker.pid());
  go.Set();
  EXPECT_EQ(worker.Join(), 0);
  EXPECT_EQ(client->NewsOf(1, kLong)->total_bytes, 0u);
}

TEST_F(VaultTest, AProcessSaysThatItsFailureIsLasting) {
  for (const absl::Status& why :
       {Lasting(absl::InternalError("no such layer")),
        LastingIfOfInput(absl::NotFoundError("no such file")),
        LastingIfOfInput(absl::InternalError("no memory"))}) {
    vault_->Allow(::getpid(), 0);
    ASSERT_THAT(NewClient()->Failed(why), IsOk());
    EXPECT_EQ(vault_->Disallow(::getpid()).lasting,
              why.message() != "no memory");
  }
}

TEST_F(VaultTest, ASocketThatSomebodyRemovesIsMadeAgain) {
  vault_->Allow(::getpid(), 0);
  const auto before = NewClient();
  EXPECT_FALSE(*vault_->Restore());
  ASSERT_EQ(
      ::unlink(
          (directory_.path() + "/" + std::string(kVaultSocketName)).c_str()),
      0);
  EXPECT_TRUE(*vault_->Restore());
  EXPECT_FALSE(*vault_->Restore());
  // Who was connected still is, and others find it.
  EXPECT_THAT(before->Ready(), IsOk());
  EXPECT_TRUE(reports_.Next().has_value());
  EXPECT_THAT(NewClient()->Ready(), IsOk());
  EXPECT_TRUE(reports_.Next().has_value());
}

TEST_F(VaultTest, AWorkerDoesNotHearOfAnothersTrouble) {
  vault_->Allow(::getpid(), 0);
  const auto client = NewClient();
  EXPECT_THAT(client->NewsOf(1, kLong),
              StatusIs(absl::StatusCode::kUnavailable));
}

TEST_F(VaultTest, DisallowEndsAProcessAndGivesItsLastWords) {
  vault_->Allow(::getpid(), 0);
  const auto client = NewClient();
  ASSERT_THAT(client->Failed(absl::NotFoundError("no\nsuch\x1b[31m file")),
              IsOk());
  // Read already or still in the socket: the answer is the same.
  const LastWords words = vault_->Disallow(::getpid());
  EXPECT_EQ(words.text, "no\\nsuch\\x1b[31m file");
  EXPECT_FALSE(words.lasting);
  const auto report = reports_.Next();
  ASSERT_TRUE(report.has_value());
  EXPECT_EQ(report->type, Type::kFailed);
  EXPECT_EQ(report->text, "no\\nsuch\\x1b[31m file");
  EXPECT_THAT(client->Withdraw(RegionKind::kKv, kLong),
              StatusIs(absl::StatusCode::kUnavailable));
  EXPECT_EQ(vault_->Disallow(::getpid()).text, "");
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
  EXPECT_EQ(vault_->Disallow(pid).text, "out of luck");
  vault_->Forget(0);
  EXPECT_EQ(vault_->NumKept(0), 0);
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
  ASSERT_THAT(client->Deposit(RegionKind::kDense, RegionClass::kMemfd,
                              memory.get(), 4096, kLong),
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
    ASSERT_THAT(
        client->Deposit(kind, RegionClass::kMemfd, memory.get(), 4096, kLong),
        IsOk());
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
  ASSERT_THAT(client->Deposit(RegionKind::kKv, RegionClass::kMemfd,
                              memory.get(), 4096, kLong),
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
  ASSERT_THAT(client->Deposit(RegionKind::kExchange, RegionClass::kMemfd,
                              memory.get(), 4096, kLong),
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
  ASSERT_THAT(client->Deposit(RegionKind::kKv, RegionClass::kMemfd, kv.get(),
                              4096, kLong),
              IsOk());
  ASSERT_THAT(client->Deposit(RegionKind::kExperts, RegionClass::kMemfd,
                              experts.get(), 8192, kLong),
              IsOk());
  const auto own = client->Withdraw(RegionKind::kExperts, kLong);
  ASSERT_THAT(own, IsOk());
  EXPECT_TRUE(SameFile(own->fd.get(), experts.get()));
}

TEST_F(VaultTest, ForgottenRankMayDepositAnew) {
  vault_->Allow(::getpid(), 0);
  const auto client = NewClient();
  const UniqueFd memory = Memory(4096);
  ASSERT_THAT(client->Deposit(RegionKind::kKv, RegionClass::kMemfd,
                              memory.get(), 4096, kLong),
              IsOk());
  vault_->Forget(0);
  EXPECT_EQ(vault_->NumKept(0), 0);
  EXPECT_THAT(client->Withdraw(RegionKind::kKv, kLong),
              StatusIs(absl::StatusCode::kNotFound));
  EXPECT_THAT(client->Deposit(RegionKind::kKv, RegionClass::kMemfd,
                              memory.get(), 4096, kLong),
              IsOk());
}

TEST_F(VaultTest, ReportsArriveInOrderWithWhatTheySay) {
  vault_->Allow(::getpid(), kCoordinatorRank);
  const auto client = NewClient(kCoordinatorRank);
  ASSERT_THAT(client->Progress(0, 100), IsOk());
  ASSERT_THAT(client->Progress(100, 100), IsOk());
  ASSERT_THAT(client->Ready(8000, 8001), IsOk());
  ASSERT_THAT(client->Failed(absl::InternalError(std::string(1000, 'y'))),
              IsOk());
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
  ASSERT_THAT(client->Deposit(RegionKind::kKv, RegionClass::kMemfd,
                              memory.get(), 4096, kLong),
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
      ASSERT_THAT((*client)->Deposit(kind, RegionClass::kMemfd, memory.get(),
                                     4096, kLong),
                  IsOk());
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
