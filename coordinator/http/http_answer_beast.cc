#include "coordinator/http/http_answer_beast.h"

#include <boost/beast/http/error.hpp>
#include <boost/beast/http/status.hpp>
#include <charconv>

#include "common/base/cat.h"

namespace moebius {
namespace {

namespace http = boost::beast::http;

// An answer of this status has no body, and says no length (RFC 9110, 8.6).
constexpr int kNoContent = 204;

std::string_view ReasonPhrase(int status) {
  const auto reason = http::obsolete_reason(http::int_to_status(status));
  return {reason.data(), reason.size()};
}

}  // namespace

void AppendAnswerHead(const HttpResponse& answer, const AnswerFrame& frame,
                      std::string* out) {
  *out += Cat("HTTP/1.1 ", answer.status, " ", ReasonPhrase(answer.status),
              "\r\nContent-Type: ", answer.content_type,
              "\r\nDate: ", frame.date, "\r\n", frame.lines);
  switch (frame.body) {
    case AnswerFrame::Body::kLength:
      if (answer.status == kNoContent) break;
      *out += Cat("Content-Length: ", answer.body.size(), "\r\n");
      break;
    case AnswerFrame::Body::kChunks:
      out->append("Transfer-Encoding: chunked\r\n");
      break;
    case AnswerFrame::Body::kRest:
      break;
  }
  for (const auto& [name, value] : answer.headers) {
    *out += Cat(name, ": ", value, "\r\n");
  }
  if (!frame.keep_alive) {
    out->append("Connection: close\r\n");
  } else if (frame.http_1_0) {
    out->append("Connection: keep-alive\r\n");
  }
  out->append("\r\n");
}

void AppendChunk(std::string_view data, std::string* out) {
  char size[16];
  const auto end = std::to_chars(size, size + sizeof(size), data.size(), 16);
  out->append(size, end.ptr);
  out->append("\r\n");
  out->append(data);
  out->append("\r\n");
}

ApiError ParseRefusal(const boost::system::error_code& error,
                      const HttpServerOptions& options) {
  ApiError refusal;
  if (error == http::error::header_limit) {
    refusal.http_status = 431;
    refusal.code = "headers_too_large";
    refusal.message = Cat("the request's headers are larger than ",
                          options.max_header_bytes, " bytes");
  } else if (error == http::error::body_limit ||
             error == http::error::buffer_overflow) {
    refusal.http_status = 413;
    refusal.code = "request_too_large";
    refusal.message = Cat("the request's body is larger than ",
                          options.max_body_bytes, " bytes");
  } else if (error == http::error::bad_version) {
    refusal.http_status = 505;
    refusal.code = "bad_http_version";
    refusal.message = "only HTTP/1.0 and HTTP/1.1 are spoken here";
  } else {
    refusal.code = "malformed_http";
    refusal.message = Cat("malformed HTTP request: ", error.message());
  }
  return refusal;
}

}  // namespace moebius
