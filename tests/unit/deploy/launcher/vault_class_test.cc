// What the vault keeps of each class of regions, and what peers get.
#include <fcntl.h>
#include <sys/stat.h>

#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/unit/worker/memory/vault_fixture.h"

namespace moebius {
namespace {

using testing::HasSubstr;

// An exported descriptor of a device looks like this to the launcher.
UniqueFd Device() { return UniqueFd(::open("/dev/zero", O_RDWR | O_CLOEXEC)); }

absl::Status DepositDevice(VaultClient& client, RegionKind kind) {
  return client.Deposit(kind, RegionClass::kDevice, Device().get(), 4096,
                        kLong);
}

testing::Matcher<absl::Status> IsRefused(const std::string& why) {
  return StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr(why));
}

TEST_F(VaultTest, AClassIsKeptForWhatItIs) {
  vault_->Allow(::getpid(), 0);
  const auto client = NewClient();
  const UniqueFd memory = Memory(4096);
  EXPECT_THAT(client->Deposit(RegionKind::kKv, RegionClass::kDevice,
                              memory.get(), 4096, kLong),
              IsRefused("not a character device"));
  EXPECT_THAT(client->Deposit(RegionKind::kKv, RegionClass::kMemfd,
                              Device().get(), 4096, kLong),
              IsRefused("not a memfd"));
  EXPECT_THAT(client->Deposit(RegionKind::kKv, RegionClass::kDevice,
                              Device().get(), 0, kLong),
              IsRefused("0 bytes"));
  EXPECT_THAT(DepositDevice(*client, RegionKind::kSignals),
              IsRefused("signals are host memory"));
  EXPECT_EQ(vault_->NumKept(0), 0);
}

TEST_F(VaultTest, RegionsOfADeviceComeInTheirOrderAndSignalsLast) {
  vault_->Allow(::getpid(), 0);
  const auto client = NewClient();
  ASSERT_THAT(DepositDevice(*client, RegionKind::kExperts), IsOk());
  ASSERT_THAT(DepositDevice(*client, RegionKind::kKv), IsOk());
  EXPECT_THAT(DepositDevice(*client, RegionKind::kKv),
              IsRefused("there is one already"));
  EXPECT_THAT(DepositDevice(*client, RegionKind::kDense),
              IsRefused("in the order of their kinds"));
  const UniqueFd signals = Memory(4096);
  ASSERT_THAT(client->Deposit(RegionKind::kSignals, RegionClass::kMemfd,
                              signals.get(), 4096, kLong),
              IsOk());
  EXPECT_THAT(DepositDevice(*client, RegionKind::kExchange),
              IsRefused("in the order of their kinds"));
  vault_->Forget(0);
  EXPECT_THAT(DepositDevice(*client, RegionKind::kExperts), IsOk());
}

TEST_F(VaultTest, AHandleIsReadByPeersAndEndsWithItsProcess) {
  vault_->Allow(::getpid(), 0);
  const auto client = NewClient();
  const auto deposit = [&](RegionKind kind, int64_t handle_bytes) {
    const UniqueFd handle = Memory(handle_bytes);
    return client->Deposit(kind, RegionClass::kHandle, handle.get(), 1 << 30,
                           kLong);
  };
  EXPECT_THAT(deposit(RegionKind::kKv, 4096), IsRefused("it has 4096 bytes"));
  EXPECT_THAT(deposit(RegionKind::kSignals, kMemoryHandleBytes),
              IsRefused("signals are host memory"));
  for (const RegionKind kind : {RegionKind::kExperts, RegionKind::kDense,
                                RegionKind::kKv, RegionKind::kExchange}) {
    ASSERT_THAT(deposit(kind, kMemoryHandleBytes), IsOk());
  }
  const UniqueFd signals = Memory(4096);
  ASSERT_THAT(client->Deposit(RegionKind::kSignals, RegionClass::kMemfd,
                              signals.get(), 4096, kLong),
              IsOk());
  const auto borrowed = client->Borrow(RegionKind::kKv, 0, kLong);
  ASSERT_THAT(borrowed, IsOk());
  EXPECT_EQ(borrowed->region_class, RegionClass::kHandle);
  EXPECT_EQ(borrowed->size_bytes, 1u << 30);
  EXPECT_EQ(AccessMode(borrowed->fd.get()), O_RDONLY);
  EXPECT_EQ(vault_->NumKept(0), kNumRegionKinds);
  vault_->Disallow(::getpid());
  EXPECT_EQ(vault_->NumKept(0), 1);  // the signals
}

TEST_F(VaultTest, PeersGetADuplicateOfADevicesDescriptor) {
  vault_->Allow(::getpid(), 0);
  const auto client = NewClient();
  struct stat before {
  }, after{};
  ASSERT_EQ(::stat("/dev/zero", &before), 0);
  const UniqueFd device = Device();
  ASSERT_THAT(client->Deposit(RegionKind::kKv, RegionClass::kDevice,
                              device.get(), 4096, kLong),
              IsOk());
  const auto borrowed = client->Borrow(RegionKind::kKv, 0, kLong);
  ASSERT_THAT(borrowed, IsOk());
  EXPECT_EQ(borrowed->region_class, RegionClass::kDevice);
  EXPECT_EQ(borrowed->size_bytes, 4096u);
  // Flags belong to what was opened: one opened anew would have its own.
  ASSERT_EQ(::fcntl(device.get(), F_SETFL, O_RDWR | O_NONBLOCK), 0);
  EXPECT_NE(::fcntl(borrowed->fd.get(), F_GETFL) & O_NONBLOCK, 0);
  EXPECT_EQ(AccessMode(borrowed->fd.get()), O_RDWR);
  ASSERT_EQ(::stat("/dev/zero", &after), 0);
  EXPECT_EQ(after.st_mode, before.st_mode);
}

}  // namespace
}  // namespace moebius
