// A blocking HTTP client that sends what it is told, byte for byte.
#pragma once

#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cstdlib>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

namespace moebius {

struct TestResponse {
  int status = 0;                              // 0: none came
  std::map<std::string, std::string> headers;  // names in lower case
  std::string body;
};

inline std::string HttpText(std::string_view method, std::string_view path,
                            std::string_view body = "",
                            std::string_view more_headers = "") {
  std::string text(method);
  text.append(" ").append(path).append(" HTTP/1.1\r\nHost: localhost\r\n");
  if (method == "POST") {
    text.append("Content-Type: application/json\r\nContent-Length: ")
        .append(std::to_string(body.size()))
        .append("\r\n");
  }
  text.append(more_headers).append("\r\n").append(body);
  return text;
}

class TestClient {
 public:
  // A receive buffer of `receive_bytes`, if not 0.
  explicit TestClient(int port, int receive_bytes = 0) {
    fd_ = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (receive_bytes > 0) {
      setsockopt(fd_, SOL_SOCKET, SO_RCVBUF, &receive_bytes,
                 sizeof(receive_bytes));
    }
    const timeval patience{30, 0};
    setsockopt(fd_, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience));
    setsockopt(fd_, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof(patience));
    const int on = 1;
    setsockopt(fd_, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_port = htons(static_cast<uint16_t>(port));
    inet_pton(AF_INET, "127.0.0.1", &address.sin_addr);
    connected_ = connect(fd_, reinterpret_cast<sockaddr*>(&address),
                         sizeof(address)) == 0;
  }
  ~TestClient() { Close(); }
  TestClient(TestClient&& other) noexcept
      : fd_(std::exchange(other.fd_, -1)),
        connected_(other.connected_),
        buffer_(std::move(other.buffer_)) {}
  TestClient(const TestClient&) = delete;

  bool connected() const { return connected_; }
  int fd() const { return fd_; }

  void Close() {
    if (fd_ >= 0) close(fd_);
    fd_ = -1;
  }
  void CloseSendingHalf() { shutdown(fd_, SHUT_WR); }

  // False if the peer takes no more.
  bool Send(std::string_view data) {
    while (!data.empty()) {
      const ssize_t n = send(fd_, data.data(), data.size(), MSG_NOSIGNAL);
      if (n <= 0) return false;
      data.remove_prefix(static_cast<size_t>(n));
    }
    return true;
  }

  // Status line and headers; the body stays to be read.
  TestResponse ReadHead() {
    TestResponse response;
    size_t end;
    while ((end = buffer_.find("\r\n\r\n")) == buffer_.npos) {
      if (!Fill()) return response;
    }
    const std::string head = buffer_.substr(0, end + 2);
    buffer_.erase(0, end + 4);
    response.status = std::atoi(head.c_str() + head.find(' ') + 1);
    size_t line = head.find("\r\n") + 2;
    while (line < head.size()) {
      const size_t next = head.find("\r\n", line);
      const size_t colon = head.find(':', line);
      std::string name = head.substr(line, colon - line);
      for (char& c : name) c = static_cast<char>(std::tolower(c));
      response.headers[name] = head.substr(colon + 2, next - colon - 2);
      line = next + 2;
    }
    return response;
  }

  TestResponse ReadResponse() {
    TestResponse response = ReadHead();
    if (response.status == 0) return response;
    if (response.headers.contains("transfer-encoding")) {
      while (auto chunk = ReadChunk()) response.body += *chunk;
    } else if (response.headers.contains("content-length")) {
      const size_t length = std::stoul(response.headers["content-length"]);
      while (buffer_.size() < length) {
        if (!Fill()) return {};
      }
      response.body = buffer_.substr(0, length);
      buffer_.erase(0, length);
    } else {
      while (Fill()) {
      }
      response.body = std::exchange(buffer_, "");
    }
    return response;
  }

  TestResponse Exchange(std::string_view text) {
    if (!Send(text)) return {};
    return ReadResponse();
  }

  // The next chunk of a chunked body; none after the last, or if the
  // connection ends before.
  std::optional<std::string> ReadChunk() {
    size_t end;
    while ((end = buffer_.find("\r\n")) == buffer_.npos) {
      if (!Fill()) return std::nullopt;
    }
    const size_t size = std::stoul(buffer_.substr(0, end), nullptr, 16);
    while (buffer_.size() < end + 2 + size + 2) {
      if (!Fill()) return std::nullopt;
    }
    std::string chunk = buffer_.substr(end + 2, size);
    buffer_.erase(0, end + 2 + size + 2);
    if (size == 0) return std::nullopt;
    return chunk;
  }

  // Of the last event that had one.
  const std::string& last_id() const { return last_id_; }

  // The data of the next event of a stream.
  std::optional<std::string> ReadEvent() {
    size_t end;
    while ((end = events_.find("\n\n")) == events_.npos) {
      auto chunk = ReadChunk();
      if (!chunk) return std::nullopt;
      events_ += *chunk;
    }
    std::string event = events_.substr(0, end);
    events_.erase(0, end + 2);
    if (event.rfind("id: ", 0) == 0) {
      last_id_ = event.substr(4, event.find('\n') - 4);
      event.erase(0, event.find('\n') + 1);
    }
    if (event.rfind("data: ", 0) == 0) event.erase(0, 6);
    return event;
  }

  // True once the peer has closed and everything it sent is read.
  bool AtEnd() {
    if (!buffer_.empty()) return false;
    char byte;
    const ssize_t n = recv(fd_, &byte, 1, 0);
    if (n > 0) buffer_.push_back(byte);
    return n == 0 || (n < 0 && errno == ECONNRESET);
  }

 private:
  bool Fill() {
    char bytes[16384];
    const ssize_t n = recv(fd_, bytes, sizeof(bytes), 0);
    if (n <= 0) return false;
    buffer_.append(bytes, static_cast<size_t>(n));
    return true;
  }

  int fd_ = -1;
  bool connected_ = false;
  std::string buffer_;
  std::string events_;
  std::string last_id_;
};

}  // namespace moebius
