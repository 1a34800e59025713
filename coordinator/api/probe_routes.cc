#include "coordinator/api/probe_routes.h"

#include "absl/strings/str_format.h"
#include "common/base/cat.h"
#include "coordinator/text/json_text.h"
#include "coordinator/text/utf8.h"

namespace moebius {

bool IsProbe(std::string_view path) {
  return path == "/health" || path == "/ready";
}

HttpResponse ProbeResponse(std::string_view path, const Engine& engine,
                           bool trusted) {
  HttpResponse response;
  if (path == "/health") {
    response.body = R"({"alive":true})";
    return response;
  }
  const EngineStatus status = engine.GetStatus();
  if (status.ready && !status.draining) {
    response.body = R"({"ready":true})";
    return response;
  }
  response.status = 503;
  response.headers.emplace_back("Retry-After", "5");
  response.body = R"({"ready":false,"reason":)";
  std::string reason = status.draining ? "draining"
                       : trusted       ? RepairUtf8(status.not_ready_reason)
                                       : "not ready; with a key it is said why";
  if (reason.empty()) reason = "starting";
  AppendJsonString(reason, &response.body);
  if (status.loaded_share.has_value()) {
    absl::StrAppendFormat(&response.body, R"(,"loaded":%.3f)",
                          *status.loaded_share);
  }
  response.body += '}';
  return response;
}

HttpResponse VersionResponse(std::string_view version) {
  HttpResponse response;
  response.body = R"({"version":)";
  AppendJsonString(version, &response.body);
  response.body += '}';
  return response;
}

bool IsMethod(const HttpRequest& request, std::string_view method) {
  return request.method == method ||
         (method == "GET" && request.method == "HEAD");
}

ApiError UnknownPath(const HttpRequest& request, std::string_view served) {
  ApiError error;
  error.http_status = 404;
  error.code = "unknown_path";
  error.message = Cat("nothing is served at ", RepairUtf8(request.path),
                      "; there are ", served);
  return error;
}

HttpResponse WrongMethod(const HttpRequest& request, std::string_view allowed) {
  ApiError error;
  error.http_status = 405;
  error.code = "method_not_allowed";
  error.message = Cat(RepairUtf8(request.path), " takes ", allowed, ", not ",
                      RepairUtf8(request.method));
  HttpResponse response = ErrorResponse(error);
  response.headers.emplace_back("Allow", std::string(allowed));
  return response;
}

}  // namespace moebius
