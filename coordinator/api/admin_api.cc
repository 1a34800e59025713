#include "coordinator/api/admin_api.h"

#include <array>
#include <string_view>
#include <utility>

#include "common/base/cat.h"
#include "coordinator/api/access.h"
#include "coordinator/api/control.h"
#include "coordinator/api/fault_routes.h"
#include "coordinator/api/page_routes.h"
#include "coordinator/api/probe_routes.h"
#include "coordinator/http/api_error.h"
#include "coordinator/text/json_text.h"

namespace moebius {
namespace {

constexpr std::string_view kServed =
    "POST /admin/layout, POST /admin/drain, POST /admin/undrain, GET "
    "/admin/operations/ID, GET /status, "
    "GET /metrics, GET /progress, GET /openapi.json, GET /health, GET /ready, "
    "GET "
    "/ranks/N/health and GET /version; "
    "models are on the public listener";

constexpr std::string_view kOperations = "/admin/operations/";

bool IsGet(std::string_view path) {
  constexpr std::array<std::string_view, 5> kPaths = {
      "/status", "/metrics", "/progress", "/version", kDescriptionPath};
  if (IsProbe(path) || IsPage(path)) return true;
  for (std::string_view known : kPaths) {
    if (path == known) return true;
  }
  return false;
}

}  // namespace

AdminApi::AdminApi(Engine& engine, const ServerReport& report,
                   AdminApiOptions options)
    : engine_(engine), report_(report), options_(std::move(options)) {}

std::optional<HttpResponse> AdminApi::Refuse(const HttpRequest& head) {
  auto refusal = RefuseAtTheDoor(options_.admission, head);
  if (IsPage(head.path)) return refusal;
  return refusal ? refusal : RefuseWithoutKey(options_.keys, head);
}

void AdminApi::Handle(std::shared_ptr<HttpExchange> exchange) {
  const HttpRequest& request = exchange->request();
  const std::string& path = request.path;
  if (path == "/admin/faults" && options_.faults != nullptr) {
    return exchange->Respond(Faults(request));
  }
  if (IsBalancerCheck(request)) {
    return exchange->Respond(
        BalancerCheckResponse(request, engine_, options_.not_ready_status));
  }
  const bool post = path == "/admin/layout" || path == "/admin/drain" ||
                    path == "/admin/undrain";
  const bool operation = path.starts_with(kOperations);
  if (!post && !operation && !IsGet(path)) {
    return exchange->Respond(ErrorResponse(UnknownPath(request, kServed)));
  }
  const std::string_view allowed = post ? "POST" : "GET";
  if (!IsMethod(request, allowed)) {
    return exchange->Respond(WrongMethod(request, allowed));
  }
  if (post) return HandleControl(std::move(exchange));
  HttpResponse response;
  if (IsPage(path)) {
    response = PageResponse(path, options_.keys.has_value());
  } else if (path == kDescriptionPath) {
    response = DescriptionResponse();
  } else if (operation) {
    response = OperationResponse(engine_.GetStatus().operations.get(),
                                 path.substr(kOperations.size()));
  } else if (path == "/status") {
    response = report_.Status(Audience::kOperators);
  } else if (path == "/metrics") {
    response = report_.Metrics(request);
  } else if (path == "/progress") {
    response = Progress();
  } else if (path == "/version") {
    response = VersionResponse(report_.info().version);
  } else {
    response = ProbeResponse(
        path, engine_,
        {IsTrusted(options_.keys, request), options_.not_ready_status});
  }
  exchange->Respond(std::move(response));
}

HttpResponse AdminApi::Faults(const HttpRequest& request) {
  const auto fail = [](const absl::Status& status) {
    ApiError error;
    error.message = std::string(status.message());
    error.param = "arm";
    return ErrorResponse(error);
  };
  if (request.method == "POST") {
    const auto specs = ParseFaultsBody(request.body);
    if (!specs.ok()) return fail(specs.status());
    for (const FaultSpec& spec : *specs) {
      if (absl::Status armed = options_.faults->Arm(spec); !armed.ok()) {
        return fail(armed);
      }
    }
  } else if (request.method == "DELETE") {
    options_.faults->DisarmAll();
  } else if (request.method != "GET") {
    return WrongMethod(request, "GET, POST, DELETE");
  }
  HttpResponse response;
  response.body = FaultsJson(*options_.faults);
  return response;
}

void AdminApi::HandleControl(std::shared_ptr<HttpExchange> exchange) {
  const HttpRequest& request = exchange->request();
  const auto call =
      ParseControl(request.path, request.query, request.body,
                   report_.info().layouts, report_.info().num_workers);
  if (!call.ok()) return exchange->Respond(ErrorResponse(call.error()));
  const std::string& ours = report_.info().instance_id;
  if (!call->expected_instance_id.empty() &&
      call->expected_instance_id != ours) {
    return exchange->Respond(WrongInstance(call->expected_instance_id, ours));
  }
  if (!call->operation.id.empty()) {
    engine_.Operate(call->operation, call->wait,
                    [exchange](absl::StatusOr<OperationAnswer> answer) {
                      exchange->Post([exchange, answer = std::move(answer)] {
                        exchange->Respond(AnswerToOperation(answer));
                      });
                    });
    return;
  }
  switch (call->operation.kind) {
    case OperationKind::kLayout:
      return HandleLayout(std::move(exchange), call->operation.choice,
                          call->wait);
    case OperationKind::kDrain:
      return HandleDrain(std::move(exchange), call->wait);
    case OperationKind::kUndrain:
      return exchange->Respond(UndrainResponse(engine_.Undrain()));
  }
}

void AdminApi::HandleLayout(std::shared_ptr<HttpExchange> exchange,
                            LayoutChoice choice, bool wait) {
  if (!wait) {
    ApiError error = BadField("operation_id",
                              "without waiting, an operation_id is needed "
                              "to ask for the outcome by");
    return exchange->Respond(ErrorResponse(error));
  }
  engine_.SetLayout(choice, [exchange](absl::StatusOr<SwitchReport> report) {
    exchange->Post([exchange, report = std::move(report)] {
      exchange->Respond(SwitchResponse(report));
    });
  });
}

void AdminApi::HandleDrain(std::shared_ptr<HttpExchange> exchange, bool wait) {
  if (!wait) {
    engine_.Drain([](bool) {});
    HttpResponse response;
    response.status = 202;
    response.body = R"({"draining":true,"drained":false})";
    return exchange->Respond(std::move(response));
  }
  engine_.Drain([exchange](bool drained) {
    exchange->Post(
        [exchange, drained] { exchange->Respond(DrainResponse(drained)); });
  });
}

HttpResponse AdminApi::Progress() {
  const EngineStatus status = engine_.GetStatus();
  const double now = report_.SecondsUp();
  double still_for = 0;
  bool idle = false;
  {
    std::lock_guard lock(mutex_);
    watch_ = Observe(watch_, status, now);
    still_for = now - watch_.advanced_at_s;
    idle = watch_.idle;
  }
  const bool stalled = !idle && still_for * 1e3 > options_.stalled_after_ms;
  HttpResponse response;
  response.status = stalled ? 503 : 200;
  response.body =
      Cat(R"({"progressing":)", stalled ? "false" : "true", R"(,"last_step":)",
          status.last_step, R"(,"running":)", status.running, R"(,"waiting":)",
          status.waiting, R"(,"still_for_s":)");
  AppendDouble(still_for, &response.body);
  response.body += '}';
  return response;
}

}  // namespace moebius
