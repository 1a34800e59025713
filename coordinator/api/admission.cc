#include "coordinator/api/admission.h"

#include <arpa/inet.h>

#include <algorithm>
#include <array>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "common/base/cat.h"
#include "common/base/printable.h"
#include "coordinator/http/api_error.h"

namespace moebius {
namespace {

constexpr std::string_view kAny = "*";
// Of what a client said, in an error.
constexpr size_t kMaxShownBytes = 200;

std::vector<std::string> WordsOf(std::string_view text) {
  return absl::StrSplit(AbslView(text), ' ', absl::SkipEmpty());
}

bool IsAmong(std::string_view word, const std::vector<std::string>& words) {
  return std::any_of(words.begin(), words.end(), [&](const std::string& one) {
    return one == word || one == kAny;
  });
}

// In the form of NormalHost(): an address, and one of loopback.
struct AddressKind {
  bool address = false;
  bool loopback = false;
};
AddressKind KindOf(const std::string& host) {
  std::array<unsigned char, 16> bytes;
  if (inet_pton(AF_INET, host.c_str(), bytes.data()) == 1) {
    return {true, bytes[0] == 127};
  }
  if (inet_pton(AF_INET6, host.c_str(), bytes.data()) == 1) {
    return {true, host == "::1" || host.starts_with("::ffff:127.")};
  }
  return {};
}

bool IsOurs(const AdmissionRules& rules, std::string_view authority) {
  const std::string host = NormalHost(authority);
  const AddressKind kind = KindOf(host);
  return host == "localhost" || host.ends_with(".localhost") || kind.loopback ||
         (kind.address && rules.any_address) || IsAmong(host, rules.hosts);
}

std::string_view AuthorityOf(std::string_view origin) {
  const size_t scheme = origin.find("://");
  return scheme == origin.npos ? "" : origin.substr(scheme + 3);
}

bool IsOurPage(const AdmissionRules& rules, const std::string& origin) {
  if (IsAmong(origin, rules.origins)) return true;
  const std::string_view authority = AuthorityOf(origin);
  return !authority.empty() && IsOurs(rules, authority);
}

HttpResponse Forbidden(std::string_view header, std::string_view value,
                       std::string_view code, std::string_view allow) {
  ApiError error;
  error.http_status = 403;
  error.code = code;
  error.message =
      Cat(header, " is \"", Printable(value, kMaxShownBytes),
          "\", and this server serves only names of its own machine as long "
          "as clients need no key; ",
          allow);
  return ErrorResponse(error);
}

HttpResponse UnsupportedBody(std::string_view code, std::string message) {
  ApiError error;
  error.http_status = 415;
  error.code = code;
  error.message = std::move(message);
  return ErrorResponse(error);
}

bool HasBody(const HttpRequest& head) {
  const std::string* length = head.Header("content-length");
  return head.Header("transfer-encoding") != nullptr ||
         (length != nullptr && *length != "0");
}

// "application/json", with or without parameters.
bool IsJsonType(std::string_view type) {
  const absl::string_view essence = absl::StripAsciiWhitespace(
      AbslView(type.substr(0, std::min(type.find(';'), type.size()))));
  return absl::EqualsIgnoreCase(essence, "application/json");
}

std::optional<HttpResponse> RefuseForeign(const AdmissionRules& rules,
                                          const HttpRequest& head) {
  const std::string* host = head.Header("host");
  for (const std::string* authority : {host, &head.authority}) {
    if (authority == nullptr || authority->empty() ||
        IsOurs(rules, *authority)) {
      continue;
    }
    return Forbidden("Host", *authority, "foreign_host",
                     "allowed_hosts of the configuration allows others");
  }
  for (const auto& [name, value] : head.headers) {
    if (name != "origin" || IsOurPage(rules, value)) continue;
    return Forbidden("Origin", value, "foreign_origin",
                     "allowed_hosts and, on the public listener, "
                     "allowed_origins of the configuration allow others");
  }
  return std::nullopt;
}

std::optional<HttpResponse> RefuseBody(const HttpRequest& head) {
  for (const auto& [name, value] : head.headers) {
    if (name != "content-encoding" || value.empty() ||
        absl::EqualsIgnoreCase(value, "identity")) {
      continue;
    }
    HttpResponse refusal = UnsupportedBody(
        "unsupported_content_encoding",
        Cat("a body is taken as it is, not with Content-Encoding \"",
            Printable(value, kMaxShownBytes), "\""));
    refusal.headers.emplace_back("Accept-Encoding", "identity");
    return refusal;
  }
  if (head.Header("origin") == nullptr || !HasBody(head)) return std::nullopt;
  const std::string* type = head.Header("content-type");
  if (type != nullptr && IsJsonType(*type)) return std::nullopt;
  HttpResponse refusal = UnsupportedBody(
      "unsupported_content_type",
      Cat("a web page's body is to be application/json, not ",
          type == nullptr ? "of no type"
                          : Cat("\"", Printable(*type, kMaxShownBytes), "\"")));
  refusal.headers.emplace_back("Accept", "application/json");
  return refusal;
}

}  // namespace

AdmissionRules MakeAdmissionRules(bool keyed, std::string_view bound_address,
                                  std::string_view hosts,
                                  std::string_view origins) {
  AdmissionRules rules;
  rules.keyed = keyed;
  for (const std::string& host : WordsOf(hosts)) {
    rules.hosts.push_back(host == kAny ? host : NormalHost(host));
  }
  rules.any_address = bound_address == "0.0.0.0" || bound_address == "::";
  if (!rules.any_address) rules.hosts.push_back(NormalHost(bound_address));
  for (const std::string& origin : WordsOf(origins)) {
    rules.origins.push_back(absl::AsciiStrToLower(origin));
  }
  return rules;
}

std::string NormalHost(std::string_view authority) {
  std::string_view host = authority;
  if (host.starts_with('[')) {
    host = host.substr(1, std::min(host.find(']'), host.size()) - 1);
  } else if (std::count(host.begin(), host.end(), ':') == 1) {
    host = host.substr(0, host.find(':'));
  }
  if (host.ends_with('.')) host.remove_suffix(1);
  std::string normal = absl::AsciiStrToLower(AbslView(host));
  std::array<unsigned char, 16> bytes;
  char text[INET6_ADDRSTRLEN];
  if (inet_pton(AF_INET6, normal.c_str(), bytes.data()) == 1 &&
      inet_ntop(AF_INET6, bytes.data(), text, sizeof(text)) != nullptr) {
    normal = text;
  }
  return normal;
}

std::optional<HttpResponse> RefuseAtTheDoor(const AdmissionRules& rules,
                                            const HttpRequest& head) {
  if (!rules.keyed) {
    if (auto refusal = RefuseForeign(rules, head)) return refusal;
  }
  return RefuseBody(head);
}

bool IsPreflight(const AdmissionRules& rules, const HttpRequest& head) {
  const std::string* origin = head.Header("origin");
  return head.method == "OPTIONS" && origin != nullptr &&
         head.Header("access-control-request-method") != nullptr &&
         IsAmong(*origin, rules.origins);
}

HttpResponse PreflightResponse(const HttpRequest& head) {
  HttpResponse response;
  response.status = 204;
  response.headers.emplace_back("Access-Control-Allow-Methods", "GET, POST");
  // Clients have headers of their own ("x-stainless-lang"), and none of them
  // means more here than without a browser.
  if (const auto* asked = head.Header("access-control-request-headers")) {
    response.headers.emplace_back("Access-Control-Allow-Headers", *asked);
  }
  response.headers.emplace_back("Access-Control-Max-Age", "600");
  return response;
}

std::vector<std::pair<std::string, std::string>> CorsHeaders(
    const AdmissionRules& rules, const HttpRequest& head) {
  if (rules.origins.empty()) return {};
  const std::string* origin = head.Header("origin");
  std::vector<std::pair<std::string, std::string>> headers;
  headers.emplace_back("Vary", "Origin");
  if (origin == nullptr || !IsAmong(*origin, rules.origins)) return headers;
  headers.emplace_back("Access-Control-Allow-Origin", *origin);
  headers.emplace_back("Access-Control-Expose-Headers",
                       "Retry-After, X-Request-Id");
  return headers;
}

}  // namespace moebius
