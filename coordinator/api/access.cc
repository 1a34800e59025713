#include "coordinator/api/access.h"

#include <string>
#include <string_view>

#include "absl/strings/match.h"
#include "common/base/cat.h"
#include "coordinator/api/probe_routes.h"
#include "coordinator/http/api_error.h"

namespace moebius {
namespace {

// The key of "Authorization: Bearer KEY"; "" if there is no such header, more
// than one, or one of another scheme.
std::string_view BearerKey(const HttpRequest& head) {
  constexpr std::string_view kScheme = "bearer ";
  const std::string* only = nullptr;
  for (const auto& [name, value] : head.headers) {
    if (name != "authorization") continue;
    if (only != nullptr) return "";  // which of them is meant?
    only = &value;
  }
  if (only == nullptr ||
      !absl::StartsWithIgnoreCase(*only, AbslView(kScheme))) {
    return "";
  }
  std::string_view key = *only;
  key.remove_prefix(kScheme.size());
  while (key.starts_with(' ')) key.remove_prefix(1);
  return key;
}

bool IsOpenToAll(const HttpRequest& head) {
  return IsProbe(head.path) || head.path == "/version" || IsBalancerCheck(head);
}

}  // namespace

bool IsTrusted(const std::optional<ApiKeys>& keys, const HttpRequest& head) {
  if (!keys.has_value()) return true;
  const std::string_view shown = BearerKey(head);
  return !shown.empty() && keys->Contains(shown);
}

std::optional<HttpResponse> RefuseWithoutKey(const std::optional<ApiKeys>& keys,
                                             const HttpRequest& head) {
  if (IsOpenToAll(head) || IsTrusted(keys, head)) return std::nullopt;
  const std::string_view shown = BearerKey(head);
  ApiError error;
  error.http_status = 401;
  error.code = "invalid_api_key";
  error.message = shown.empty()
                      ? "this server wants an API key: send it in a header, "
                        "Authorization: Bearer KEY"
                      : "the API key is none of this server's";
  HttpResponse response = ErrorResponse(error);
  // RFC 6750, section 3.
  response.headers.emplace_back(
      "WWW-Authenticate",
      shown.empty() ? "Bearer" : "Bearer error=\"invalid_token\"");
  return response;
}

}  // namespace moebius
