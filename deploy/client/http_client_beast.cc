#include <array>
#include <boost/asio/connect.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/write.hpp>
#include <boost/beast/http/parser.hpp>
#include <boost/beast/http/string_body.hpp>
#include <optional>
#include <utility>

#include "common/base/cat.h"
#include "common/base/check.h"
#include "common/base/status_macros.h"
#include "deploy/client/event_loop_asio.h"
#include "deploy/client/http_client.h"

namespace moebius {
namespace {

namespace asio = boost::asio;
namespace beast = boost::beast;
namespace http = boost::beast::http;
using boost::system::error_code;

// Passes a body on as it comes, in whichever coding it is.
struct PassOnBody {
  struct value_type {
    std::function<void(std::string_view)> on_bytes;
  };
  class reader {
   public:
    template <bool kIsRequest, class Fields>
    reader(http::header<kIsRequest, Fields>&, value_type& value)
        : value_(value) {}
    void init(const boost::optional<uint64_t>&, error_code& error) {
      error = {};
    }
    template <class Buffers>
    size_t put(const Buffers& buffers, error_code& error) {
      error = {};
      size_t size = 0;
      for (auto it = asio::buffer_sequence_begin(buffers);
           it != asio::buffer_sequence_end(buffers); ++it) {
        const asio::const_buffer piece = *it;
        value_.on_bytes(std::string_view(static_cast<const char*>(piece.data()),
                                         piece.size()));
        size += piece.size();
      }
      return size;
    }
    void finish(error_code& error) { error = {}; }

   private:
    value_type& value_;
  };
};

}  // namespace

struct HttpConnection::Impl : std::enable_shared_from_this<Impl> {
  Impl(asio::io_context& io, Url url)
      : socket(io), resolver(io), url(std::move(url)) {}

  void Start();
  void Connect();
  void ConnectTo(const asio::ip::tcp::endpoint& endpoint);
  void Write();
  void Read();
  void OnRead(error_code error, size_t size);
  // True when the answer is whole.
  bool Parse(error_code& error);
  void Broken(error_code error, std::string_view what);
  void End(const absl::Status& status);

  asio::ip::tcp::socket socket;
  asio::ip::tcp::resolver resolver;
  const Url url;
  std::string request;
  HttpListener* listener = nullptr;  // of the request under way
  bool closed = false;               // by the owner
  bool reused = false;               // the connection served a request before
  bool answered = false;             // a byte of this answer has come
  bool told_status = false;
  std::optional<http::response_parser<PassOnBody>> parser;
  std::string unparsed;  // the beginning of a header or a chunk's header
  std::array<char, 16384> buffer;
};

void HttpConnection::Impl::Start() {
  answered = false;
  told_status = false;
  unparsed.clear();
  parser.emplace();
  parser->eager(true);
  parser->body_limit(boost::none);
  parser->header_limit(64 << 10);
  parser->get().body().on_bytes = [this](std::string_view bytes) {
    if (!told_status) {
      told_status = true;
      listener->OnStatus(parser->get().result_int());
    }
    listener->OnBody(bytes);
  };
  if (socket.is_open()) {
    reused = true;
    Write();
  } else {
    reused = false;
    Connect();
  }
}

void HttpConnection::Impl::Connect() {
  error_code error;
  const asio::ip::address address = asio::ip::make_address(url.host, error);
  if (!error) {
    return ConnectTo({address, static_cast<uint16_t>(url.port)});
  }
  resolver.async_resolve(
      url.host, Cat(url.port),
      [self = shared_from_this()](error_code error, const auto& results) {
        if (self->closed) return;
        if (error || results.empty()) {
          return self->Broken(error, "cannot find the host");
        }
        self->ConnectTo(results.begin()->endpoint());
      });
}

void HttpConnection::Impl::ConnectTo(const asio::ip::tcp::endpoint& endpoint) {
  socket.async_connect(endpoint, [self = shared_from_this()](error_code error) {
    if (self->closed) return;
    if (error) return self->Broken(error, "cannot connect");
    error_code ignored;
    self->socket.set_option(asio::ip::tcp::no_delay(true), ignored);
    self->Write();
  });
}

void HttpConnection::Impl::Write() {
  asio::async_write(socket, asio::buffer(request),
                    [self = shared_from_this()](error_code error, size_t) {
                      if (self->closed) return;
                      if (error) return self->Broken(error, "cannot send");
                      self->Read();
                    });
}

void HttpConnection::Impl::Read() {
  socket.async_read_some(
      asio::buffer(buffer),
      [self = shared_from_this()](error_code error, size_t size) {
        if (!self->closed) self->OnRead(error, size);
      });
}

void HttpConnection::Impl::OnRead(error_code error, size_t size) {
  if (error == asio::error::eof && answered) {
    // The end of a body that lasts as long as its connection.
    error_code bad;
    parser->put_eof(bad);
    if (!bad && parser->is_done()) {
      socket.close(bad);
      return End(absl::OkStatus());
    }
  }
  if (error) return Broken(error, "connection lost");
  answered = true;
  unparsed.append(buffer.data(), size);
  const std::shared_ptr<Impl> alive = shared_from_this();
  const bool whole = Parse(error);
  if (closed) return;  // by the listener
  if (error) return Broken(error, "not an HTTP answer");
  if (!whole) return Read();
  if (!parser->get().keep_alive()) {
    error_code ignored;
    socket.close(ignored);
  }
  End(absl::OkStatus());
}

bool HttpConnection::Impl::Parse(error_code& error) {
  size_t used = 0;
  while (used < unparsed.size() && !parser->is_done()) {
    const size_t n = parser->put(
        asio::const_buffer(unparsed.data() + used, unparsed.size() - used),
        error);
    if (closed) return false;
    used += n;
    if (error == http::error::need_more) {
      error = {};
      break;
    }
    if (error) return false;
    if (n == 0) break;
  }
  unparsed.erase(0, used);
  return parser->is_done();
}

void HttpConnection::Impl::Broken(error_code error, std::string_view what) {
  error_code ignored;
  socket.close(ignored);
  if (reused && !answered) {
    // The server closed an idle connection: the request was never read.
    Start();
    return;
  }
  End(absl::UnavailableError(
      Cat("http://", url.authority(), ": ", what, ": ", error.message())));
}

void HttpConnection::Impl::End(const absl::Status& status) {
  HttpListener* const ended = std::exchange(listener, nullptr);
  if (status.ok() && !told_status) {
    ended->OnStatus(parser->get().result_int());
  }
  // A new request may begin in here.
  if (!closed) ended->OnEnd(status);
}

HttpConnection::HttpConnection(EventLoop& loop, Url url)
    : impl_(std::make_shared<Impl>(loop.impl().io, std::move(url))) {}

HttpConnection::~HttpConnection() {
  impl_->closed = true;
  error_code ignored;
  impl_->socket.close(ignored);
}

void HttpConnection::Send(std::string_view method, std::string_view target,
                          std::string_view body, HttpListener& listener,
                          std::string_view headers) {
  CHECK(impl_->listener == nullptr);
  impl_->listener = &listener;
  impl_->request =
      Cat(method, " ", target, " HTTP/1.1\r\nHost: ", impl_->url.authority(),
          "\r\nAccept: */*\r\n");
  if (!impl_->url.api_key.empty()) {
    impl_->request += Cat("Authorization: Bearer ", impl_->url.api_key, "\r\n");
  }
  if (!body.empty()) {
    impl_->request +=
        Cat("Content-Type: application/json\r\nContent-Length: ", body.size(),
            "\r\n");
  }
  impl_->request += Cat(headers, "\r\n", body);
  impl_->Start();
}

}  // namespace moebius
