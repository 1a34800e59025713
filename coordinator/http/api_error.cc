#include "coordinator/http/api_error.h"

#include <utility>

#include "common/base/cat.h"
#include "coordinator/text/json_text.h"
#include "coordinator/text/utf8.h"

namespace moebius {
namespace {

constexpr int kRetryFullQueueSeconds = 1;
constexpr int kRetryNotReadySeconds = 5;

void AppendTextOrNull(std::string_view text, std::string* out) {
  if (text.empty()) {
    out->append("null");
  } else {
    AppendJsonString(RepairUtf8(text), out);
  }
}

}  // namespace

ApiError BadField(std::string_view param, std::string message) {
  ApiError error;
  error.message = std::move(message);
  error.param = param;
  return error;
}

std::string ErrorBody(const ApiError& error) {
  std::string out = R"({"error":{"message":)";
  AppendJsonString(RepairUtf8(error.message), &out);
  out.append(R"(,"type":)");
  AppendJsonString(error.type, &out);
  out.append(R"(,"param":)");
  AppendTextOrNull(error.param, &out);
  out.append(R"(,"code":)");
  AppendTextOrNull(error.code, &out);
  out.append("}}");
  return out;
}

HttpResponse ErrorResponse(const ApiError& error) {
  HttpResponse response;
  response.status = error.http_status;
  response.body = ErrorBody(error);
  if (error.retry_after_s > 0) {
    response.headers.emplace_back("Retry-After", Cat(error.retry_after_s));
  }
  return response;
}

ApiError EngineError(const absl::Status& status) {
  ApiError error;
  error.message = std::string(status.message());
  switch (status.code()) {
    case absl::StatusCode::kResourceExhausted:
      error.http_status = 429;
      error.type = "rate_limit_error";
      error.code = "queue_full";
      error.retry_after_s = kRetryFullQueueSeconds;
      break;
    case absl::StatusCode::kUnavailable:
      error.http_status = 503;
      error.type = "service_unavailable_error";
      error.code = "not_ready";
      error.retry_after_s = kRetryNotReadySeconds;
      break;
    case absl::StatusCode::kInvalidArgument:
      break;
    case absl::StatusCode::kAborted:
      error.http_status = 409;
      error.code = "checkpoint_changed";
      break;
    default:
      error.http_status = 500;
      error.type = "server_error";
      error.code = "internal_error";
      break;
  }
  return error;
}

}  // namespace moebius
