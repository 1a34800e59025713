#include "coordinator/api/request_origin.h"

#include "common/base/cat.h"
#include "coordinator/api/call_context.h"

namespace moebius {

Parsed<RequestOrigin> OriginOf(const HttpRequest& request,
                               std::string_view body,
                               std::chrono::steady_clock::time_point arrived) {
  RequestOrigin origin;
  origin.arrived = arrived;
  const std::string* key = request.Header("idempotency-key");
  if (key != nullptr) {
    if (key->empty() || key->size() > kMaxKeyBytes) {
      ApiError error;
      error.param = "Idempotency-Key";
      error.message = Cat("an Idempotency-Key has 1 to ", kMaxKeyBytes,
                          " bytes; this one has ", key->size());
      return error;
    }
    const std::string* authorization = request.Header("authorization");
    origin.key =
        ScopedKey(*key, authorization == nullptr ? "" : *authorization);
  }
  origin.fingerprint = FingerprintOf(request.path, body);
  const std::string* last = request.Header("last-event-id");
  if (key == nullptr || last == nullptr || last->empty()) return origin;
  origin.last_event = ParseEventId(*last);
  if (!origin.last_event.has_value()) {
    return BadField("Last-Event-ID",
                    "Last-Event-ID is to be the id of an event of the same "
                    "request");
  }
  return origin;
}

}  // namespace moebius
