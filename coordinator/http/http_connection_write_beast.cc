// What an HttpConnection sends.
#include <boost/asio/buffer.hpp>

#include "common/base/logging.h"
#include "coordinator/http/http_answer_beast.h"
#include "coordinator/http/http_connection_beast.h"

namespace moebius {
namespace {

namespace asio = boost::asio;
using tcp = asio::ip::tcp;
using boost::system::error_code;

// Buffers above this size are given back when empty.
constexpr size_t kKeptBufferBytes = 64 << 10;

}  // namespace

void HttpConnection::AppendHead(const HttpResponse& response,
                                AnswerFrame::Body body) {
  LogAnswer(response);
  answer_status_ = response.status;
  AppendAnswerHead(response,
                   {host_->date(), http_1_0_, keep_alive_, body, answer_lines_},
                   &out_);
}

// An answer that is complete.
void HttpConnection::AppendWhole(const HttpResponse& response) {
  AppendHead(response, AnswerFrame::Body::kLength);
  if (!head_only_) out_.append(response.body);
  answer_bytes_ = response.body.size();
}

void HttpConnection::Respond(const HttpResponse& response) {
  if (host_->draining()) keep_alive_ = false;
  AppendWhole(response);
  FinishExchange();
}

void HttpConnection::StartStream(const HttpResponse& head) {
  chunked_ = !http_1_0_;
  if (!chunked_ || host_->draining()) keep_alive_ = false;
  AppendHead(head,
             chunked_ ? AnswerFrame::Body::kChunks : AnswerFrame::Body::kRest);
  Flush();
}

void HttpConnection::Write(std::string_view data) {
  if (data.empty() || head_only_) return;
  if (unsent() > host_->options().max_stream_buffer_bytes) {
    LogInfo("http: a client reads too slowly and is cut off, request ",
            request_id_);
    return Close();
  }
  answer_bytes_ += data.size();
  if (chunked_) {
    AppendChunk(data, &out_);
  } else {
    out_.append(data);
  }
}

void HttpConnection::FinishStream() {
  if (chunked_ && !head_only_) out_.append(kLastChunk);
  FinishExchange();
}

void HttpConnection::Flush() {
  if (closed_ || write_waiting_) return;
  const bool had_something = unsent() > 0;
  while (unsent() > 0) {
    error_code error;
    const size_t n = socket_.write_some(
        asio::buffer(out_.data() + out_begin_, unsent()), error);
    if (error == asio::error::would_block || error == asio::error::try_again) {
      // Bytes that are sent leave the buffer once they are the larger part.
      if (out_begin_ > unsent()) {
        out_.erase(0, out_begin_);
        out_begin_ = 0;
      }
      write_waiting_ = true;
      last_write_progress_ = Clock::now();
      socket_.async_wait(tcp::socket::wait_write,
                         [self = shared_from_this()](error_code wait_error) {
                           self->write_waiting_ = false;
                           if (wait_error) {
                             self->Close();
                           } else {
                             self->Flush();
                           }
                         });
      return;
    }
    if (error) return Close();
    out_begin_ += n;
  }
  if (had_something || close_when_flushed_) OnFlushed();
}

void HttpConnection::OnFlushed() {
  out_.clear();
  out_begin_ = 0;
  if (out_.capacity() > kKeptBufferBytes) out_.shrink_to_fit();
  if (close_when_flushed_ && current_ == nullptr) {
    if (waiting_ == Waiting::kLinger) return;
    if (peer_closed_) return Close();
    error_code ignored;
    socket_.shutdown(tcp::socket::shutdown_send, ignored);
    in_.clear();
    Wait(Waiting::kLinger);
    resume_.cancel();
    return;
  }
  if (current_ == nullptr) {
    resume_.cancel();
    ProcessInput();  // pipelined requests wait for the buffer to empty
  }
}

}  // namespace moebius
