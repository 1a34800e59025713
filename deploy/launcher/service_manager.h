// What a service manager hears of us (sd_notify(3)'s protocol): that the group
// serves, that it ends, and, if it asked for that, that it gets on.
#pragma once

#include <string>
#include <string_view>

#include "absl/time/time.h"
#include "common/base/deadline.h"
#include "common/base/unique_fd.h"

namespace moebius {

// ServiceManager
//
// Without one (no NOTIFY_SOCKET) every call does nothing. Messages are
// datagrams that are sent or lost, never waited for. Threading:
// thread-compatible.
class ServiceManager {
 public:
  // By NOTIFY_SOCKET, WATCHDOG_USEC and WATCHDOG_PID, which are then taken out
  // of the environment: they are not meant for children.
  static ServiceManager FromEnvironment();

  // The group serves. From now on the watchdog wants to be fed.
  void Ready(std::string_view status);
  // It ends, and may take that long. Later calls do nothing.
  void Stopping(absl::Duration at_most);

  // Time to look whether it gets on; infinite without a watchdog.
  const Deadline& next_look() const { return next_look_; }
  // The answer to that look. `progress`: something has got on since the last.
  void Look(bool progress);

 private:
  ServiceManager() = default;
  void Send(const std::string& message);

  UniqueFd socket_;  // connected; invalid: nobody to tell
  absl::Duration watchdog_ = absl::InfiniteDuration();
  Deadline next_look_;
  bool stopping_ = false;
};

}  // namespace moebius
