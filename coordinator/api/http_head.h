// What the head of a request says, beyond what the parser has looked at.
#pragma once

#include <string_view>

#include "coordinator/api/http_message.h"

namespace moebius {

// Sets path (percent-decoded; what is no escape stays) and query from
// "/path?query" or "http://host/path?query".
void SplitTarget(std::string_view target, HttpRequest* request);

// Why the end of a request's body may be in doubt, or "" (RFC 9112, 6.1 and
// 6.3). Beast refuses two lengths and a length beside "chunked", but takes a
// coding that it does not know for none.
std::string_view DoubtfulFraming(const HttpRequest& head, bool http_1_0);

}  // namespace moebius
