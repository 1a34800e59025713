// An HTTP/1.1 server for many long-lived streams on few threads.
#pragma once

#include <cstddef>
#include <memory>

#include "absl/status/statusor.h"
#include "common/config/config.h"
#include "coordinator/http/http_message.h"
#include "coordinator/http/io_threads.h"

namespace moebius {

inline constexpr size_t kSmallRequestBytes = size_t{64} << 10;

struct HttpServerOptions {
  ListenAddress listen;
  size_t max_header_bytes = size_t{16} << 10;  // 431 beyond
  size_t max_body_bytes = size_t{4} << 20;     // 413 beyond
  // Beyond it, and where descriptors are short, the connection that has waited
  // longest for a request is closed for a new one; without any the new one gets
  // a 503.
  int max_connections = 8192;
  int header_timeout_ms = 15'000;  // first byte of a request to its last
                                   // header: 408 beyond
  int body_timeout_ms = 60'000;    // last header to last byte: 408 beyond
  int idle_timeout_ms = 75'000;    // between requests: closed beyond
  // A client that takes nothing for this long while we have something for it
  // is cut off.
  int write_timeout_ms = 30'000;
  // Unread bytes of a stream, beyond what the kernel buffers, at which its
  // client is cut off.
  size_t max_stream_buffer_bytes = size_t{1} << 20;
  bool log_requests = false;  // each, at info, when its answer has ended
  int socket_send_buffer_bytes = 256 << 10;  // 0: the kernel's choice
  // Bytes of incomplete requests, over all connections that hold more than
  // kSmallRequestBytes of one. Whose request grows beyond it gets a 503.
  size_t max_incomplete_bytes = size_t{256} << 20;
};

// HttpServer
//
// Accepts on the first thread and spreads connections over all of them. Keeps
// connections alive, answers pipelined requests one after another, refuses
// malformed and oversized requests with a JSON error in OpenAI's shape, and
// notices a client that goes away also while an answer is being computed (a
// client that closes only its sending half counts as gone).
//
// Framing: where another server might see the end of a request elsewhere (two
// lengths, a length and a coding, a coding other than one "chunked", a coding
// in HTTP/1.0), the request is refused and the connection ends.
//
// Threading: thread-safe but for Stop() and destruction, which are called from
// one thread that is none of `threads`.
class HttpServer {
 public:
  // Binds and serves. `threads` and `handler` outlive the server.
  // Errors: kInvalidArgument for an address that is none, kUnavailable when
  // it cannot be bound.
  static absl::StatusOr<std::unique_ptr<HttpServer>> Start(
      const HttpServerOptions& options, IoThreads& threads,
      HttpHandler& handler);
  ~HttpServer();

  // The port bound.
  int port() const;
  int num_connections() const;

  // Closes the listening socket and idle connections; requests under way go
  // on, each connection closing after its answer.
  void StopAccepting();

  // Closes everything. Handlers hear OnClosed of their open exchanges; none is
  // called after this returns.
  void Stop();

  class Core;

 private:
  explicit HttpServer(std::shared_ptr<Core> core) : core_(std::move(core)) {}
  std::shared_ptr<Core> core_;
};

}  // namespace moebius
