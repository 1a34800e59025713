#include "coordinator/api/control.h"

#include <utility>

#include "common/base/cat.h"
#include "coordinator/api/json_input.h"
#include "coordinator/api/request_fields.h"
#include "coordinator/http/api_error.h"
#include "coordinator/status/status_text.h"
#include "coordinator/text/json_text.h"

namespace moebius {
namespace {

ApiError SwitchError(const absl::Status& status) {
  ApiError error;
  error.message = std::string(status.message());
  switch (status.code()) {
    case absl::StatusCode::kUnavailable:
      return EngineError(status);
    case absl::StatusCode::kInternal:
    case absl::StatusCode::kUnknown:
    case absl::StatusCode::kDataLoss:
      error.http_status = 500;
      error.type = "server_error";
      error.code = "switch_failed";
      return error;
    case absl::StatusCode::kInvalidArgument:
      error.param = "layout";
      return error;
    default:
      error.http_status = 409;
      error.code = "switch_refused";
      return error;
  }
}

// Letters that go into a path and a log as they are.
bool IsOperationId(std::string_view id) {
  for (const char c : id) {
    const bool plain = (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') ||
                       (c >= 'A' && c <= 'Z') || c == '-' || c == '_' ||
                       c == '.' || c == ':';
    if (!plain) return false;
  }
  return true;
}

std::string_view KindName(OperationKind kind) {
  switch (kind) {
    case OperationKind::kLayout:
      return "layout";
    case OperationKind::kDrain:
      return "drain";
    case OperationKind::kUndrain:
      break;
  }
  return "undrain";
}

std::string OperationJson(const KnownOperation& known) {
  const Operation& operation = known.operation;
  std::string out = R"({"operation_id":)";
  AppendJsonString(operation.id, &out);
  out += Cat(R"(,"kind":")", KindName(operation.kind), R"(","layout":)");
  if (operation.kind == OperationKind::kLayout) {
    out += Cat("\"", LayoutChoiceName(operation.choice), "\"");
  } else {
    out += "null";
  }
  out += Cat(R"(,"state":")", known.end.has_value() ? "ended" : "running",
             R"(","began_unix_ms":)", known.began_unix_ms);
  if (known.end.has_value()) {
    out += Cat(R"(,"ended_unix_ms":)", known.end->unix_ms, R"(,"http_status":)",
               known.end->http_status, R"(,"answer":)",
               known.end->answer.empty() ? "null" : known.end->answer, "}");
  } else {
    out += R"(,"ended_unix_ms":null,"http_status":null,"answer":null})";
  }
  return out;
}

// A 409 of which the body also has `operation`.
HttpResponse Conflict(std::string_view code, std::string_view message,
                      const KnownOperation& operation) {
  ApiError error;
  error.http_status = 409;
  error.code = code;
  error.message = message;
  HttpResponse response = ErrorResponse(error);
  response.body.pop_back();  // its last brace
  response.body += Cat(R"(,"operation":)", OperationJson(operation), "}");
  return response;
}

// The fields beside the layout.
Parsed<ControlCall> ReadFields(std::string_view body) {
  ControlCall out;
  if (body.empty()) return out;
  const auto object = ParseJson(body);
  if (!object.ok() || !object->is_object()) {
    ApiError error;
    error.code = "invalid_json";
    error.message =
        object.ok() ? "the request's body must be a JSON object"
                    : Cat("the request's body is ", object.status().message());
    return error;
  }
  FieldReader fields(*object);
  fields.String("operation_id", kMaxOperationIdBytes, &out.operation.id);
  fields.String("expected_instance_id", kMaxOperationIdBytes,
                &out.expected_instance_id);
  fields.Bool("wait", &out.wait);
  if (!IsOperationId(out.operation.id)) {
    fields.Fail("operation_id", "letters, digits, and -_.: among them");
  }
  if (fields.error()) return *fields.error();
  return out;
}

}  // namespace

Parsed<ControlCall> ParseControl(std::string_view path, std::string_view query,
                                 std::string_view body,
                                 const std::vector<Layout>& layouts,
                                 int num_ranks) {
  Operation operation;
  if (path == "/admin/layout") {
    const auto choice = ParseLayoutBody(body, layouts, num_ranks);
    if (!choice.ok()) return choice.error();
    operation.choice = *choice;
  } else {
    operation.kind = path == "/admin/drain" ? OperationKind::kDrain
                                            : OperationKind::kUndrain;
  }
  Parsed<ControlCall> call = ReadFields(body);
  if (!call.ok()) return call;
  operation.id = std::move(call->operation.id);
  call->operation = std::move(operation);
  if (query == "wait=false") call->wait = false;
  return call;
}

HttpResponse SwitchResponse(const absl::StatusOr<SwitchReport>& report) {
  if (!report.ok()) return ErrorResponse(SwitchError(report.status()));
  if (!report->done && !report->reason.empty()) {
    ApiError error;
    error.http_status = 409;
    error.code = "switch_refused";
    error.message = report->reason;
    return ErrorResponse(error);
  }
  HttpResponse response;
  response.body = SwitchReportJson(*report);
  return response;
}

HttpResponse DrainResponse(bool drained) {
  HttpResponse response;
  response.body = drained ? R"({"draining":true,"drained":true})"
                          : R"({"draining":false,"drained":false})";
  return response;
}

HttpResponse UndrainResponse(const absl::Status& status) {
  if (!status.ok()) {
    ApiError error;
    error.http_status = 409;
    error.code = "stopping";
    error.message = std::string(status.message());
    return ErrorResponse(error);
  }
  HttpResponse response;
  response.body = R"({"draining":false})";
  return response;
}

OperationEnd EndOf(OperationKind kind, const OperationResult& result) {
  HttpResponse response;
  switch (kind) {
    case OperationKind::kLayout:
      response = result.status.ok() ? SwitchResponse(result.report)
                                    : SwitchResponse(result.status);
      break;
    case OperationKind::kDrain:
      response = result.status.ok() ? DrainResponse(result.drained)
                                    : ErrorResponse(EngineError(result.status));
      break;
    case OperationKind::kUndrain:
      response = UndrainResponse(result.status);
      break;
  }
  OperationEnd end;
  end.http_status = response.status;
  end.answer = std::move(response.body);
  return end;
}

HttpResponse OperationResponse(const std::vector<KnownOperation>* known,
                               std::string_view id) {
  if (known != nullptr) {
    for (const KnownOperation& one : *known) {
      if (one.operation.id != id) continue;
      HttpResponse response;
      response.body = OperationJson(one);
      return response;
    }
  }
  ApiError error;
  error.http_status = 404;
  error.code = "unknown_operation";
  error.message = Cat("no operation of this id is remembered; the last ",
                      kMaxOperations, " are");
  return ErrorResponse(error);
}

HttpResponse AnswerToOperation(const absl::StatusOr<OperationAnswer>& answer) {
  if (!answer.ok()) return ErrorResponse(EngineError(answer.status()));
  const KnownOperation& known = answer->operation;
  switch (answer->verdict) {
    case OperationVerdict::kOtherId:
      return Conflict("operation_id_reused",
                      "something else was asked for under this operation_id",
                      known);
    case OperationVerdict::kBusy:
      return Conflict("operation_running",
                      "another operation of this kind runs", known);
    case OperationVerdict::kBegins:
    case OperationVerdict::kKnown:
      break;
  }
  HttpResponse response;
  if (known.end.has_value()) {
    response.status = known.end->http_status;
    response.body = known.end->answer;
    return response;
  }
  response.status = 202;
  response.headers.emplace_back("Location",
                                Cat("/admin/operations/", known.operation.id));
  response.body = OperationJson(known);
  return response;
}

HttpResponse WrongInstance(std::string_view expected, std::string_view ours) {
  ApiError error;
  error.http_status = 409;
  error.code = "instance_changed";
  error.param = "expected_instance_id";
  error.message = Cat("this is group ", ours, ", not ", expected);
  return ErrorResponse(error);
}

}  // namespace moebius
