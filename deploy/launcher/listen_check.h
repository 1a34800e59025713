// Addresses that a group is to listen at, before it does.
#pragma once

#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "common/config/config.h"

namespace moebius {

// kAlreadyExists when another process listens there; kInvalidArgument for an
// address that is not this machine's; OK for port 0. `key` ("http.port") and
// `flag` ("--port") name the culprit.
absl::Status CheckPortIsFree(const ListenAddress& address, std::string_view key,
                             std::string_view flag);

// "http://127.0.0.1:8000"; a host in brackets if it is IPv6; the loopback
// address for one that means all.
std::string UrlOf(const std::string& host, int port);

}  // namespace moebius
