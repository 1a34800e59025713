#include "coordinator/api/probe_routes.h"

#include "absl/strings/str_format.h"
#include "common/base/cat.h"
#include "coordinator/text/json_text.h"
#include "coordinator/text/utf8.h"

namespace moebius {

namespace {

constexpr std::string_view kRanks = "/ranks/";
constexpr std::string_view kHealth = "/health";

// "3" of "/ranks/3/health"; "" of another path.
std::string_view RankIn(std::string_view path) {
  if (!path.starts_with(kRanks) || !path.ends_with(kHealth) ||
      path.size() <= kRanks.size() + kHealth.size()) {
    return "";
  }
  path.remove_prefix(kRanks.size());
  path.remove_suffix(kHealth.size());
  return path.find('/') == path.npos ? path : "";
}

HttpResponse RankResponse(std::string_view rank, const EngineStatus& status) {
  HttpResponse response;
  for (const WorkerStatus& worker : status.workers) {
    if (Cat(worker.rank) != rank) continue;
    response.status = worker.connected ? 200 : 503;
    response.body = Cat(R"({"rank":)", worker.rank, R"(,"alive":)",
                        worker.connected ? "true" : "false",
                        R"(,"incarnation":)", worker.incarnation, "}");
    return response;
  }
  ApiError error;
  error.http_status = 404;
  error.code = "unknown_rank";
  error.message = Cat("there is no such rank; there are ",
                      status.workers.size(), " of them, from 0");
  return ErrorResponse(error);
}

}  // namespace

bool IsProbe(std::string_view path) {
  return path == kHealth || path == "/ready" || !RankIn(path).empty();
}

std::string ProbeRoute(std::string_view path) {
  return std::string(RankIn(path).empty() ? path : "/ranks/N/health");
}

bool IsBalancerCheck(const HttpRequest& request) {
  return request.method == "OPTIONS" &&
         (request.path == "/" || IsProbe(request.path));
}

HttpResponse BalancerCheckResponse(const HttpRequest& request,
                                   const Engine& engine, int not_ready_status) {
  const std::string_view path =
      request.path == "/" ? std::string_view("/ready") : request.path;
  HttpResponse response =
      ProbeResponse(path, engine, {false, not_ready_status});
  response.body.clear();
  response.headers.emplace_back("Allow", "GET, HEAD, OPTIONS");
  return response;
}

HttpResponse ProbeResponse(std::string_view path, const Engine& engine,
                           const ProbeRules& rules) {
  HttpResponse response;
  if (path == "/health") {
    response.body = R"({"alive":true})";
    return response;
  }
  const EngineStatus status = engine.GetStatus();
  if (const std::string_view rank = RankIn(path); !rank.empty()) {
    return RankResponse(rank, status);
  }
  if (status.ready && !status.draining) {
    response.body = R"({"ready":true})";
    return response;
  }
  response.status = rules.not_ready_status;
  response.headers.emplace_back("Retry-After", "5");
  response.body = R"({"ready":false,"reason":)";
  std::string reason = status.draining ? "draining"
                       : rules.trusted ? RepairUtf8(status.not_ready_reason)
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
