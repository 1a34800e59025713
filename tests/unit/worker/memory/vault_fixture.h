// A vault in the test's process, and what tests of it share.
#pragma once

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include <deque>
#include <memory>
#include <optional>
#include <string>
#include <utility>

#include "absl/synchronization/mutex.h"
#include "common/vault/fd_socket.h"
#include "common/vault/vault_client.h"
#include "deploy/launcher/vault.h"
#include "gtest/gtest.h"
#include "tests/status_matchers.h"
#include "tests/unit/worker/memory/processes.h"

namespace moebius {

inline constexpr absl::Duration kLong = absl::Seconds(10);
inline constexpr int kSeals = F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL;

inline UniqueFd Memory(uint64_t size_bytes, int seals = kSeals) {
  UniqueFd fd(::memfd_create("test", MFD_CLOEXEC | MFD_ALLOW_SEALING));
  EXPECT_EQ(::ftruncate(fd.get(), static_cast<off_t>(size_bytes)), 0);
  EXPECT_EQ(::fcntl(fd.get(), F_ADD_SEALS, seals), 0);
  return fd;
}

inline bool SameFile(int a, int b) {
  struct stat x {
  }, y{};
  EXPECT_EQ(::fstat(a, &x), 0);
  EXPECT_EQ(::fstat(b, &y), 0);
  return x.st_ino == y.st_ino && x.st_dev == y.st_dev;
}

inline int AccessMode(int fd) { return ::fcntl(fd, F_GETFL) & O_ACCMODE; }

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

}  // namespace moebius
