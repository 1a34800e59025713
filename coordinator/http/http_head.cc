#include "coordinator/http/http_head.h"

#include <algorithm>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "common/base/cat.h"

namespace moebius {
namespace {

int HexDigit(char c) {
  if (c >= '0' && c <= '9') return c - '0';
  if (c >= 'a' && c <= 'f') return c - 'a' + 10;
  if (c >= 'A' && c <= 'F') return c - 'A' + 10;
  return -1;
}

std::string PercentDecode(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  for (size_t i = 0; i < text.size(); ++i) {
    if (text[i] == '%' && i + 2 < text.size() && HexDigit(text[i + 1]) >= 0 &&
        HexDigit(text[i + 2]) >= 0) {
      out.push_back(static_cast<char>(HexDigit(text[i + 1]) * 16 +
                                      HexDigit(text[i + 2])));
      i += 2;
    } else {
      out.push_back(text[i]);
    }
  }
  return out;
}

}  // namespace

void SplitTarget(std::string_view target, HttpRequest* request) {
  const size_t scheme = target.find("://");
  if (!target.empty() && target[0] != '/' && scheme != target.npos) {
    const size_t slash = target.find('/', scheme + 3);
    request->authority = target.substr(scheme + 3, slash - (scheme + 3));
    target = slash == target.npos ? "/" : target.substr(slash);
  }
  const size_t question = target.find('?');
  if (question != target.npos) {
    request->query = target.substr(question + 1);
    target = target.substr(0, question);
  }
  request->path = PercentDecode(target);
  if (request->path.size() > 1 && request->path.ends_with('/')) {
    request->path.pop_back();
  }
}

std::string_view DoubtfulFraming(const HttpRequest& head, bool http_1_0) {
  int codings = 0;
  bool chunked = true;
  bool length = false;
  for (const auto& [name, value] : head.headers) {
    if (name == "content-length") length = true;
    if (name != "transfer-encoding") continue;
    ++codings;
    chunked = chunked && absl::EqualsIgnoreCase(value, "chunked");
  }
  if (codings == 0) return "";
  if (codings > 1 || !chunked) return "Transfer-Encoding can only be chunked";
  if (length) return "both Content-Length and Transfer-Encoding";
  if (http_1_0) return "HTTP/1.0 has no Transfer-Encoding";
  return "";
}

std::string_view HostTrouble(const HttpRequest& head, bool http_1_0) {
  const std::string* host = nullptr;
  for (const auto& [name, value] : head.headers) {
    if (name != "host") continue;
    if (host != nullptr) return "more than one Host";
    host = &value;
  }
  if (host == nullptr) return http_1_0 ? "" : "no Host";
  // Of RFC 3986's authority without a user, coarsely.
  constexpr std::string_view kAllowed = "-._~%!$&'()*+,;=:[]";
  const bool is_host = std::all_of(host->begin(), host->end(), [&](char c) {
    return absl::ascii_isalnum(static_cast<unsigned char>(c)) ||
           kAllowed.find(c) != kAllowed.npos;
  });
  return is_host ? "" : "a Host that is none";
}

bool HasBareLineFeed(std::string_view bytes, size_t* scanned) {
  constexpr std::string_view kEnd = "\r\n\r\n";
  const size_t begin = *scanned;
  // The end may have been cut.
  const size_t from = begin - std::min(begin, kEnd.size() - 1);
  const size_t end = std::min(bytes.find(kEnd, from), bytes.size());
  *scanned = std::max(begin, end);
  for (size_t at = begin; at < end; ++at) {
    if (bytes[at] == '\n' && (at == 0 || bytes[at - 1] != '\r')) return true;
  }
  return false;
}

std::string_view ClientRequestId(const HttpRequest& head) {
  const std::string* id = head.Header("x-request-id");
  if (id == nullptr || id->size() > kMaxRequestIdBytes) return "";
  for (unsigned char c : *id) {
    if (!absl::ascii_isgraph(c)) return "";
  }
  return *id;
}

}  // namespace moebius
