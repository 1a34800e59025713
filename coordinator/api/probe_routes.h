// The routes that both listeners answer, and the answers for wrong ones.
#pragma once

#include <string>
#include <string_view>

#include "coordinator/engine/engine.h"
#include "coordinator/http/api_error.h"
#include "coordinator/http/http_message.h"

namespace moebius {

// /health and /ready.
bool IsProbe(std::string_view path);

// /health: 200 while the process answers. /ready: 200 while new requests are
// taken, else 503 and, if `trusted`, the reason: it may be the last words of a
// worker, with names of files in them. While weights load, "loaded" is the
// share that is there. Neither submits anything.
HttpResponse ProbeResponse(std::string_view path, const Engine& engine,
                           bool trusted);

HttpResponse VersionResponse(std::string_view version);

// True for `method`, and for HEAD where GET is meant.
bool IsMethod(const HttpRequest& request, std::string_view method);

// 404; `served` are the routes that there are.
ApiError UnknownPath(const HttpRequest& request, std::string_view served);
HttpResponse WrongMethod(const HttpRequest& request,
                         std::string_view allowed);  // 405 with Allow

}  // namespace moebius
