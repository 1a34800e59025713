// The operators' page (coordinator/page), and the description of both
// listeners.
#pragma once

#include <string_view>

#include "coordinator/http/http_message.h"

namespace moebius {

inline constexpr std::string_view kDescriptionPath = "/openapi.json";

// "/", "/page.js" and "/page.css". They say nothing of the group and want no
// key: the page asks for one and shows it with each call that it makes.
bool IsPage(std::string_view path);
// Of one of these. `keyed`: the page has to ask for a key first.
HttpResponse PageResponse(std::string_view path, bool keyed);

// OpenAPI 3.0, docs/openapi.json.
HttpResponse DescriptionResponse();

}  // namespace moebius
