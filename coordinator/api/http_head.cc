#include "coordinator/api/http_head.h"

#include "absl/strings/match.h"
#include "common/cat.h"

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
    target = slash == target.npos ? "/" : target.substr(slash);
  }
  const size_t question = target.find('?');
  if (question != target.npos) {
    request->query = target.substr(question + 1);
    target = target.substr(0, question);
  }
  request->path = PercentDecode(target);
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

}  // namespace moebius
