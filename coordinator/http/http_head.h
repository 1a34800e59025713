// What the head of a request says, beyond what the parser has looked at.
#pragma once

#include <string_view>

#include "coordinator/http/http_message.h"

namespace moebius {

// Sets path (percent-decoded; what is no escape stays; one '/' at its end
// goes), query and authority from "/path?query" or "http://host/path?query".
void SplitTarget(std::string_view target, HttpRequest* request);

// Why the end of a request's body may be in doubt, or "" (RFC 9112, 6.1 and
// 6.3). Beast refuses two lengths and a length beside "chunked", but takes a
// coding that it does not know for none.
std::string_view DoubtfulFraming(const HttpRequest& head, bool http_1_0);

// What is wrong with Host, or "" (RFC 9112, 3.2): there is none (HTTP/1.0 needs
// none), there are two, or it is no host and port.
std::string_view HostTrouble(const HttpRequest& head, bool http_1_0);

// Whether a line of a head ends without CR (RFC 9112, 2.2; Beast would wait for
// more). `bytes` begin with the head; what is behind its end is not looked at.
// `*scanned` of them have been looked at by an earlier call, and are moved on.
bool HasBareLineFeed(std::string_view bytes, size_t* scanned);

// The X-Request-Id of the request if it can be shown anywhere: up to
// kMaxRequestIdBytes printable ASCII characters, no space among them. "": there
// is none.
inline constexpr size_t kMaxRequestIdBytes = 128;
std::string_view ClientRequestId(const HttpRequest& head);

}  // namespace moebius
