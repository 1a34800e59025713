// Answers as they go over the wire (RFC 9112), and those that the server gives
// by itself, to what never became a request. Only for the HTTP server.
#pragma once

#include <boost/system/error_code.hpp>
#include <string>
#include <string_view>

#include "coordinator/http/api_error.h"
#include "coordinator/http/http_message.h"
#include "coordinator/http/http_server.h"

namespace moebius {

// What a connection adds to the head of an answer.
struct AnswerFrame {
  std::string_view date;  // as a Date header has it
  bool http_1_0 = false;
  bool keep_alive = true;
  // How the client finds the body's end: by Content-Length, by the last chunk
  // (not with HTTP/1.0), or by the end of the connection (no keep_alive).
  enum class Body { kLength, kChunks, kRest } body = Body::kLength;
  // Whole header lines, with their ends, that come with each answer to a
  // request.
  std::string_view lines;
};

// Status line, headers and the empty line.
void AppendAnswerHead(const HttpResponse& answer, const AnswerFrame& frame,
                      std::string* out);

// `data` is not empty: that would be the last chunk.
void AppendChunk(std::string_view data, std::string* out);
inline constexpr std::string_view kLastChunk = "0\r\n\r\n";

// To what Beast's parser cannot take: 400, 413, 431 or 505.
ApiError ParseRefusal(const boost::system::error_code& error,
                      const HttpServerOptions& options);

}  // namespace moebius
