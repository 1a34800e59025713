#include "deploy/client/admin_client.h"

#include "absl/status/status.h"
#include "common/base/cat.h"
#include "common/base/status_macros.h"

namespace moebius {
namespace {

using Json = nlohmann::json;

const Json* Find(const Json& object, const char* key) {
  if (!object.is_object()) return nullptr;
  const auto it = object.find(key);
  return it == object.end() ? nullptr : &*it;
}

// {"error": {"message": ...}}, or the beginning of whatever came.
std::string ErrorText(const HttpAnswer& answer, const Json& body) {
  std::string message = TextAt(ObjectAt(body, "error"), "message");
  if (message.empty()) message = TextAt(body, "reason");
  if (message.empty()) message = answer.body.substr(0, 200);
  return Cat("the server answered ", answer.status, message.empty() ? "" : ": ",
             message);
}

}  // namespace

double NumberAt(const Json& object, const char* key, double fallback) {
  const Json* value = Find(object, key);
  return value != nullptr && value->is_number() ? value->get<double>()
                                                : fallback;
}

uint64_t CountAt(const Json& object, const char* key) {
  const Json* value = Find(object, key);
  const bool is_count =
      value != nullptr && value->is_number_integer() &&
      (value->is_number_unsigned() || value->get<int64_t>() >= 0);
  return is_count ? value->get<uint64_t>() : 0;
}

bool BoolAt(const Json& object, const char* key) {
  const Json* value = Find(object, key);
  return value != nullptr && value->is_boolean() && value->get<bool>();
}

std::string TextAt(const Json& object, const char* key) {
  const Json* value = Find(object, key);
  return value != nullptr && value->is_string() ? value->get<std::string>()
                                                : std::string();
}

const Json& ObjectAt(const Json& object, const char* key) {
  static const auto* empty = new Json(Json::object());
  const Json* value = Find(object, key);
  return value != nullptr && value->is_object() ? *value : *empty;
}

absl::StatusOr<Json> ParseAnswer(const HttpAnswer& answer) {
  Json body = Json::parse(answer.body, nullptr, false);
  if (answer.status >= 200 && answer.status < 300) {
    if (body.is_object()) return body;
    return absl::InternalError(Cat("the server's answer is not a JSON object: ",
                                   answer.body.substr(0, 200)));
  }
  const std::string text = ErrorText(answer, body);
  if (answer.status == 503) return absl::UnavailableError(text);
  if (answer.status == 409) return absl::FailedPreconditionError(text);
  if (answer.status >= 400 && answer.status < 500) {
    return absl::InvalidArgumentError(text);
  }
  return absl::InternalError(text);
}

absl::StatusOr<Json> FetchStatus(EventLoop& loop, const Url& admin,
                                 absl::Duration timeout) {
  ASSIGN_OR_RETURN(const HttpAnswer answer,
                   HttpRequest(loop, admin, "GET", "/status", "", timeout));
  return ParseAnswer(answer);
}

SwitchFigures ParseSwitchFigures(const Json& report) {
  SwitchFigures figures;
  figures.from = TextAt(report, "from");
  figures.to = TextAt(report, "to");
  figures.done = BoolAt(report, "done");
  figures.reason = TextAt(report, "reason");
  figures.weight_bytes = CountAt(report, "weight_bytes");
  figures.kv_bytes = CountAt(report, "kv_bytes");
  figures.prepare_ms = NumberAt(report, "prepare_ms");
  figures.pause_ms = NumberAt(report, "pause_ms");
  figures.switch_ms = NumberAt(report, "switch_ms");
  figures.weight_ms = NumberAt(report, "weight_ms");
  figures.kv_ms = NumberAt(report, "kv_ms");
  return figures;
}

absl::StatusOr<SwitchFigures> RequestLayout(EventLoop& loop, const Url& admin,
                                            std::string_view layout,
                                            absl::Duration timeout) {
  ASSIGN_OR_RETURN(
      const HttpAnswer answer,
      HttpRequest(loop, admin, "POST", "/admin/layout",
                  Json{{"layout", std::string(layout)}}.dump(), timeout));
  const absl::StatusOr<Json> report = ParseAnswer(answer);
  if (absl::IsFailedPrecondition(report.status())) {
    // Also said when it is in that layout already, which is no failure.
    ASSIGN_OR_RETURN(const Json status, FetchStatus(loop, admin, timeout));
    if (TextAt(status, "layout") == layout) return SwitchFigures();
  }
  RETURN_IF_ERROR(report.status());
  SwitchFigures figures = ParseSwitchFigures(*report);
  if (!figures.done && !figures.reason.empty()) {
    return absl::FailedPreconditionError(
        Cat("the switch was refused: ", figures.reason));
  }
  return figures;
}

}  // namespace moebius
