// The routes that both listeners answer, and the answers for wrong ones.
#pragma once

#include <string>
#include <string_view>

#include "coordinator/engine/engine.h"
#include "coordinator/http/api_error.h"
#include "coordinator/http/http_message.h"

namespace moebius {

// /health, /ready and /ranks/N/health.
bool IsProbe(std::string_view path);
// What metrics call it: "/ranks/N/health", whatever the rank.
std::string ProbeRoute(std::string_view path);

// A balancer's check: OPTIONS of a probe, or of "/", which stands for /ready
// (HAProxy's httpchk asks so unless it is told otherwise). Not what a browser
// asks before it asks (IsPreflight).
bool IsBalancerCheck(const HttpRequest& request);
// As for GET, without a body and with Allow.
HttpResponse BalancerCheckResponse(const HttpRequest& request,
                                   const Engine& engine, int not_ready_status);

struct ProbeRules {
  bool trusted = false;  // hears reasons
  int not_ready_status = 503;
};

// /health: 200 while the process answers. /ready: 200 while new requests are
// taken, else `not_ready_status` and, for who is trusted, the reason: it may be
// the last words of a worker, with names of files in them. While weights load,
// "loaded" is the share that is there. /ranks/N/health: 200 while that rank's
// worker is connected, else 503; 404 for a rank that there is not. None submits
// anything.
HttpResponse ProbeResponse(std::string_view path, const Engine& engine,
                           const ProbeRules& rules);

HttpResponse VersionResponse(std::string_view version);

// True for `method`, and for HEAD where GET is meant.
bool IsMethod(const HttpRequest& request, std::string_view method);

// 404; `served` are the routes that there are.
ApiError UnknownPath(const HttpRequest& request, std::string_view served);
HttpResponse WrongMethod(const HttpRequest& request,
                         std::string_view allowed);  // 405 with Allow

}  // namespace moebius
