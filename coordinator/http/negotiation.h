// What a client would rather have (RFC 9110, 12.4 and 12.5). Pure.
#pragma once

#include <string_view>

#include "coordinator/http/http_message.h"

namespace moebius {

// The weight, 0 to 1, that the list of an Accept or Accept-Encoding header
// gives `wanted` ("text/plain", "gzip"): of its own entry, or else of the
// widest range that covers it ("text/*", "*/*", "*"); 0 when none does.
// Parameters beside the weight are not looked at, so the highest weight of
// several versions of a type counts. What is malformed gives nothing.
double WeightOf(std::string_view list, std::string_view wanted);

// Whether the client takes gzip, and OpenMetrics rather than plain text.
bool TakesGzip(const HttpRequest& request);
bool PrefersOpenMetrics(const HttpRequest& request);

}  // namespace moebius
