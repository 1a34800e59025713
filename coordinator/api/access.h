// Who may ask a listener for what.
#pragma once

#include <optional>

#include "common/config/api_keys.h"
#include "coordinator/http/http_message.h"

namespace moebius {

// Whether there are no keys, or the request shows one of them.
bool IsTrusted(const std::optional<ApiKeys>& keys, const HttpRequest& head);

// Nothing if the request may be served: it is trusted, or for a path open to
// all (probes of load balancers, /health and /ready, and /version). Otherwise
// OpenAI's 401.
std::optional<HttpResponse> RefuseWithoutKey(const std::optional<ApiKeys>& keys,
                                             const HttpRequest& head);

}  // namespace moebius
