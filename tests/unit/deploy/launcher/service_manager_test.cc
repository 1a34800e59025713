#include "deploy/launcher/service_manager.h"

#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <cstdlib>
#include <cstring>
#include <string>

#include "common/base/cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace moebius {
namespace {

using ::testing::HasSubstr;

// The other end: a socket in the abstract name space.
class ServiceManagerTest : public ::testing::Test {
 protected:
  void SetUp() override {
    name_ = Cat("moebius-notify-", getpid());
    socket_.reset(::socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0));
    sockaddr_un address = {};
    address.sun_family = AF_UNIX;
    std::memcpy(address.sun_path + 1, name_.data(), name_.size());
    ASSERT_EQ(bind(socket_.get(), reinterpret_cast<sockaddr*>(&address),
                   static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + 1 +
                                          name_.size())),
              0);
    setenv("NOTIFY_SOCKET", Cat("@", name_).c_str(), 1);
    setenv("WATCHDOG_USEC", "20000", 1);
    setenv("WATCHDOG_PID", Cat(getpid()).c_str(), 1);
  }

  // The next message that is there; "" for none.
  std::string Heard() {
    char text[4096];
    const ssize_t n = recv(socket_.get(), text, sizeof text, MSG_DONTWAIT);
    return n < 0 ? "" : std::string(text, static_cast<size_t>(n));
  }

  std::string name_;
  UniqueFd socket_;
};

TEST_F(ServiceManagerTest, WithoutOneNothingIsSentAndNoWatchdogLooks) {
  unsetenv("NOTIFY_SOCKET");
  ServiceManager manager = ServiceManager::FromEnvironment();
  manager.Ready("serves");
  manager.Look(true);
  EXPECT_EQ(manager.next_look().left_ms(), -1);
  EXPECT_EQ(Heard(), "");
}

TEST_F(ServiceManagerTest, NameOfNobodyIsNoObstacle) {
  for (const char* name : {"/nowhere/socket", "relative", ""}) {
    setenv("NOTIFY_SOCKET", name, 1);
    ServiceManager manager = ServiceManager::FromEnvironment();
    manager.Ready("serves");
    EXPECT_EQ(Heard(), "") << name;
  }
}

TEST_F(ServiceManagerTest, WatchdogOfAnotherProcessIsNotOurs) {
  setenv("WATCHDOG_PID", "1", 1);
  ServiceManager manager = ServiceManager::FromEnvironment();
  manager.Ready("serves");
  EXPECT_THAT(Heard(), HasSubstr("READY=1"));
  EXPECT_EQ(manager.next_look().left_ms(), -1);
}

TEST_F(ServiceManagerTest, ChildrenInheritNothingOfIt) {
  ServiceManager manager = ServiceManager::FromEnvironment();
  for (const char* name : {"NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"}) {
    EXPECT_EQ(getenv(name), nullptr) << name;
  }
}

TEST_F(ServiceManagerTest, StatusCannotBringLinesOfItsOwn) {
  ServiceManager manager = ServiceManager::FromEnvironment();
  manager.Ready("serves\nSTOPPING=1");
  EXPECT_THAT(Heard(), ::testing::Not(HasSubstr("\nSTOPPING=1")));
}

TEST_F(ServiceManagerTest, WatchdogIsFedOnlyForProgress) {
  ServiceManager manager = ServiceManager::FromEnvironment();
  EXPECT_EQ(manager.next_look().left_ms(), -1);  // not before it serves
  manager.Ready("serves");
  EXPECT_THAT(Heard(), HasSubstr("READY=1"));
  EXPECT_LE(manager.next_look().left(), absl::Milliseconds(5));
  manager.Look(false);
  EXPECT_EQ(Heard(), "");
  manager.Look(true);
  EXPECT_EQ(Heard(), "WATCHDOG=1");
}

TEST_F(ServiceManagerTest, EndIsSaidOnceWithTheTimeItMayTake) {
  ServiceManager manager = ServiceManager::FromEnvironment();
  manager.Stopping(absl::Seconds(38));
  const std::string said = Heard();
  EXPECT_THAT(said, HasSubstr("STOPPING=1"));
  EXPECT_THAT(said, HasSubstr("EXTEND_TIMEOUT_USEC=38000000"));
  manager.Stopping(absl::Seconds(38));
  EXPECT_EQ(Heard(), "");
}

}  // namespace
}  // namespace moebius
