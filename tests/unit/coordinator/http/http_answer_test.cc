#include <boost/beast/http/error.hpp>
#include <string>

#include "coordinator/http/http_answer_beast.h"
#include "gtest/gtest.h"

namespace moebius {
namespace {

namespace http = boost::beast::http;

constexpr std::string_view kDate = "Thu, 01 Jan 1970 00:00:00 GMT";

std::string Head(const HttpResponse& answer, bool http_1_0, bool keep_alive,
                 AnswerFrame::Body body) {
  std::string out = "before ";
  AppendAnswerHead(answer, {kDate, http_1_0, keep_alive, body, "X-One: 1\r\n"},
                   &out);
  return out;
}

TEST(HttpAnswer, HeadOfAWholeAnswer) {
  HttpResponse answer;
  answer.status = 429;
  answer.headers = {{"Retry-After", "3"}, {"X-Two", "a b"}};
  answer.body = "{\"a\":1}";
  EXPECT_EQ(Head(answer, false, true, AnswerFrame::Body::kLength),
            "before HTTP/1.1 429 Too Many Requests\r\n"
            "Content-Type: application/json\r\n"
            "Date: Thu, 01 Jan 1970 00:00:00 GMT\r\n"
            "X-One: 1\r\n"
            "Content-Length: 7\r\n"
            "Retry-After: 3\r\n"
            "X-Two: a b\r\n"
            "\r\n");
}

TEST(HttpAnswer, HowTheEndIsFoundAndWhetherTheConnectionGoesOn) {
  HttpResponse answer;
  answer.content_type = "text/event-stream";
  const std::string start =
      "before HTTP/1.1 200 OK\r\n"
      "Content-Type: text/event-stream\r\n"
      "Date: Thu, 01 Jan 1970 00:00:00 GMT\r\n"
      "X-One: 1\r\n";
  EXPECT_EQ(Head(answer, false, true, AnswerFrame::Body::kChunks),
            start + "Transfer-Encoding: chunked\r\n\r\n");
  EXPECT_EQ(Head(answer, false, false, AnswerFrame::Body::kChunks),
            start + "Transfer-Encoding: chunked\r\nConnection: close\r\n\r\n");
  EXPECT_EQ(Head(answer, true, false, AnswerFrame::Body::kRest),
            start + "Connection: close\r\n\r\n");
  EXPECT_EQ(Head(answer, true, true, AnswerFrame::Body::kLength),
            start + "Content-Length: 0\r\nConnection: keep-alive\r\n\r\n");
}

TEST(HttpAnswer, NoContentHasNoLength) {
  HttpResponse answer;
  answer.status = 204;
  EXPECT_EQ(
      Head(answer, false, true, AnswerFrame::Body::kLength).find("Length"),
      std::string::npos);
}

TEST(HttpAnswer, Chunks) {
  std::string out;
  AppendChunk("abc", &out);
  AppendChunk(std::string(0x1a2, 'x'), &out);
  out.append(kLastChunk);
  EXPECT_EQ(out,
            "3\r\nabc\r\n1a2\r\n" + std::string(0x1a2, 'x') + "\r\n0\r\n\r\n");
}

TEST(HttpAnswer, RefusalsOfWhatCannotBeParsed) {
  HttpServerOptions options;
  options.max_header_bytes = 111;
  options.max_body_bytes = 222;
  const struct {
    http::error error;
    int status;
    std::string code, message;
  } rows[] = {
      {http::error::header_limit, 431, "headers_too_large",
       "the request's headers are larger than 111 bytes"},
      {http::error::body_limit, 413, "request_too_large",
       "the request's body is larger than 222 bytes"},
      {http::error::buffer_overflow, 413, "request_too_large",
       "the request's body is larger than 222 bytes"},
      {http::error::bad_version, 505, "bad_http_version",
       "only HTTP/1.0 and HTTP/1.1 are spoken here"},
      {http::error::bad_method, 400, "malformed_http",
       "malformed HTTP request: bad method"},
  };
  for (const auto& row : rows) {
    const ApiError refusal = ParseRefusal(row.error, options);
    EXPECT_EQ(refusal.http_status, row.status) << row.message;
    EXPECT_EQ(refusal.code, row.code);
    EXPECT_EQ(refusal.message, row.message);
    EXPECT_EQ(refusal.type, "invalid_request_error");
  }
}

}  // namespace
}  // namespace moebius
