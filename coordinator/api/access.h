// Who may ask a listener for what.
#pragma once

#include <optional>
#include <string_view>

#include "common/config/api_keys.h"
#include "coordinator/http/http_message.h"

namespace moebius {

// The key of "Authorization: Bearer KEY"; "" if there is no such header, more
// than one, or one of another scheme.
std::string_view BearerKey(const HttpRequest& head);

// Whether anybody may ask for `path`: probes of load balancers (/health,
// /ready) and /version.
bool IsOpenToAll(std::string_view path);

// Whether there are no keys, or the request shows one of them.
bool IsTrusted(const std::optional<ApiKeys>& keys, const HttpRequest& head);

// Nothing if the request may be served: it is trusted, or for a path open to
// all. Otherwise OpenAI's 401.
std::optional<HttpResponse> RefuseWithoutKey(const std::optional<ApiKeys>& keys,
                                             const HttpRequest& head);

}  // namespace moebius
