// What a client is told when its request cannot be served: OpenAI's error
// object and the HTTP status that goes with it.
#pragma once

#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "coordinator/http/http_message.h"

namespace moebius {

struct ApiError {
  int http_status = 400;
  std::string message;
  std::string type = "invalid_request_error";
  std::string param;      // the field at fault; empty: null
  std::string code;       // empty: null
  int retry_after_s = 0;  // sent as Retry-After when not 0
};

// 400, the field named.
ApiError BadField(std::string_view param, std::string message);

// {"error":{"message","type","param","code"}}
std::string ErrorBody(const ApiError& error);
HttpResponse ErrorResponse(const ApiError& error);

// The error of a failed Engine call: kResourceExhausted 429, kUnavailable 503,
// kInvalidArgument 400, anything else 500.
ApiError EngineError(const absl::Status& status);

}  // namespace moebius
