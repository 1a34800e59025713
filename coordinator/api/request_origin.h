// What a request says beside its body: whose answer it wants again, and from
// where on.
#pragma once

#include <chrono>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "coordinator/api/event_id.h"
#include "coordinator/api/openai_request.h"
#include "coordinator/http/http_message.h"

namespace moebius {

struct RequestOrigin {
  std::string key;           // scoped, see ScopedKey; empty: none was given
  uint64_t fingerprint = 0;  // of route and body
  // Of the last event that the client has; nothing: it wants all of them. Never
  // without a key: nothing else can be resumed.
  std::optional<EventId> last_event;
  std::chrono::steady_clock::time_point arrived;
};

// Reads Idempotency-Key, Authorization and, with the former, Last-Event-ID:
// clients send the last id that they have seen by themselves, be it of another
// server. An error names the header.
Parsed<RequestOrigin> OriginOf(const HttpRequest& request,
                               std::string_view body,
                               std::chrono::steady_clock::time_point arrived);

}  // namespace moebius
