#include "deploy/launcher/service_manager.h"

#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <cstddef>
#include <cstdlib>
#include <cstring>

#include "absl/strings/numbers.h"
#include "common/base/cat.h"
#include "common/base/logging.h"
#include "common/base/printable.h"

namespace moebius {
namespace {

// Feeds a watchdog gets in its time, so that one that is lost costs nothing.
constexpr int kLooksAPeriod = 4;

// "/run/..." or "@..." for the abstract name space. Invalid: there is none.
UniqueFd ConnectTo(const char* path) {
  sockaddr_un address = {};
  address.sun_family = AF_UNIX;
  const size_t size = std::strlen(path);
  if ((path[0] != '/' && path[0] != '@') || size >= sizeof address.sun_path) {
    return UniqueFd();
  }
  std::memcpy(address.sun_path, path, size);
  if (path[0] == '@') address.sun_path[0] = '\0';
  UniqueFd socket(::socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0));
  const auto length =
      static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + size);
  if (!socket || connect(socket.get(), reinterpret_cast<sockaddr*>(&address),
                         length) != 0) {
    return UniqueFd();
  }
  return socket;
}

// Of the variables; infinite: none, or one of another process.
absl::Duration WatchdogOfEnvironment() {
  const char* pid = std::getenv("WATCHDOG_PID");
  if (pid != nullptr && Cat(getpid()) != pid) return absl::InfiniteDuration();
  const char* period = std::getenv("WATCHDOG_USEC");
  int64_t period_us = 0;
  if (period == nullptr || !absl::SimpleAtoi(period, &period_us) ||
      period_us <= 0) {
    return absl::InfiniteDuration();
  }
  return absl::Microseconds(period_us);
}

}  // namespace

ServiceManager ServiceManager::FromEnvironment() {
  ServiceManager manager;
  if (const char* path = std::getenv("NOTIFY_SOCKET")) {
    manager.socket_ = ConnectTo(path);
    if (manager.socket_) {
      manager.watchdog_ = WatchdogOfEnvironment();
    } else {
      LogWarn("NOTIFY_SOCKET: nobody listens at ", Printable(path));
    }
  }
  for (const char* name : {"NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"}) {
    unsetenv(name);
  }
  return manager;
}

void ServiceManager::Ready(std::string_view status) {
  Send(Cat("READY=1\nMAINPID=", getpid(), "\nSTATUS=", Printable(status)));
  next_look_ = Deadline::After(watchdog_ / kLooksAPeriod);
}

void ServiceManager::Stopping(absl::Duration at_most) {
  if (stopping_) return;
  stopping_ = true;
  Send(
      Cat("STOPPING=1\nSTATUS=finishing what is in flight\n"
          "EXTEND_TIMEOUT_USEC=",
          absl::ToInt64Microseconds(at_most)));
}

void ServiceManager::Look(bool progress) {
  next_look_ = Deadline::After(watchdog_ / kLooksAPeriod);
  if (progress) Send("WATCHDOG=1");
}

void ServiceManager::Send(const std::string& message) {
  if (!socket_) return;
  [[maybe_unused]] const ssize_t sent =
      send(socket_.get(), message.data(), message.size(),
           MSG_DONTWAIT | MSG_NOSIGNAL);
}

}  // namespace moebius
