// What a request says beside its body: whose answer it wants again, and from
// where on.
#pragma once

#include <chrono>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "coordinator/api/http_message.h"
#include "coordinator/api/openai_request.h"

namespace moebius {

struct RequestOrigin {
  std::string key;           // scoped, see ScopedKey; empty: none was given
  uint64_t fingerprint = 0;  // of route and body
  // Tokens of each choice that the client has; empty: it wants all of them.
  std::vector<int64_t> last_event;
  std::chrono::steady_clock::time_point arrived;
};

// Reads Idempotency-Key, Authorization and Last-Event-ID. An error names the
// header.
Parsed<RequestOrigin> OriginOf(const HttpRequest& request,
                               std::string_view body,
                               std::chrono::steady_clock::time_point arrived);

}  // namespace moebius
