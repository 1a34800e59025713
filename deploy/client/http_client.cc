#include "deploy/client/http_client.h"

#include <algorithm>
#include <memory>
#include <optional>
#include <utility>

#include "absl/strings/numbers.h"
#include "common/base/cat.h"
#include "common/base/status_macros.h"

namespace moebius {
namespace {

// Keeps a whole answer.
class WholeAnswer : public HttpListener {
 public:
  void OnStatus(int status) override { answer_.status = status; }
  void OnBody(std::string_view bytes) override {
    if (answer_.body.size() + bytes.size() > kMaxAnswerBytes) {
      too_large_ = true;
      return;
    }
    answer_.body.append(bytes);
  }
  void OnEnd(const absl::Status& status) override { end_ = status; }

  bool done() const { return end_.has_value() || too_large_; }
  absl::StatusOr<HttpAnswer> Take() {
    if (too_large_) {
      return absl::ResourceExhaustedError(
          Cat("an answer of more than ", kMaxAnswerBytes, " bytes"));
    }
    RETURN_IF_ERROR(*end_);
    return std::move(answer_);
  }

 private:
  HttpAnswer answer_;
  bool too_large_ = false;
  std::optional<absl::Status> end_;
};

// End of the first event in `text`, behind its empty line; npos if it has not
// ended.
size_t EventEnd(std::string_view text, size_t from) {
  for (size_t at = text.find('\n', from); at != std::string_view::npos;
       at = text.find('\n', at + 1)) {
    const std::string_view rest = text.substr(at + 1);
    if (rest.starts_with('\n')) return at + 2;
    if (rest.starts_with("\r\n")) return at + 3;
  }
  return std::string_view::npos;
}

// Calls back with the data of one event.
void DeliverEvent(std::string_view event, std::string& last_id,
                  const std::function<void(std::string_view)>& on_data) {
  std::string joined;  // only for events of several data lines
  std::string_view data;
  bool found = false;
  while (!event.empty()) {
    const size_t end = event.find('\n');
    std::string_view line = event.substr(0, end);
    event = end == std::string_view::npos ? "" : event.substr(end + 1);
    if (line.ends_with('\r')) line.remove_suffix(1);
    const bool is_id = line.starts_with("id:");
    if (!is_id && !line.starts_with("data:")) continue;
    line.remove_prefix(is_id ? 3 : 5);
    if (line.starts_with(' ')) line.remove_prefix(1);
    if (is_id) {
      last_id.assign(line);
      continue;
    }
    if (!found) {
      data = line;
      found = true;
    } else {
      if (joined.empty()) joined = std::string(data);
      joined += Cat("\n", line);
      data = joined;
    }
  }
  if (found) on_data(data);
}

}  // namespace

std::string Url::authority() const {
  const bool is_v6 = host.find(':') != std::string::npos;
  return is_v6 ? Cat("[", host, "]:", port) : Cat(host, ":", port);
}

absl::StatusOr<Url> ParseUrl(std::string_view text) {
  const absl::Status bad =
      absl::InvalidArgumentError(Cat("'", text,
                                     "': allowed is http://ADDRESS:PORT, like "
                                     "http://127.0.0.1:8000"));
  std::string_view left = text;
  if (!left.starts_with("http://")) return bad;
  left.remove_prefix(7);
  if (left.ends_with('/')) left.remove_suffix(1);
  if (left.find_first_of("/?#@ ") != std::string_view::npos) return bad;
  Url url;
  size_t host_end;
  if (left.starts_with('[')) {
    const size_t bracket = left.find(']');
    if (bracket == std::string_view::npos) return bad;
    url.host = std::string(left.substr(1, bracket - 1));
    host_end = bracket + 1;
  } else {
    host_end = std::min(left.find(':'), left.size());
    url.host = std::string(left.substr(0, host_end));
  }
  if (url.host == "localhost") url.host = "127.0.0.1";
  if (url.host.empty()) return bad;
  left.remove_prefix(host_end);
  if (left.empty()) return url;
  if (!left.starts_with(':')) return bad;
  left.remove_prefix(1);
  if (!absl::SimpleAtoi(AbslView(left), &url.port) || url.port < 1 ||
      url.port > 65535) {
    return bad;
  }
  return url;
}

absl::StatusOr<HttpAnswer> HttpRequest(EventLoop& loop, const Url& url,
                                       std::string_view method,
                                       std::string_view target,
                                       std::string_view body,
                                       absl::Duration timeout) {
  WholeAnswer answer;
  HttpConnection connection(loop, url);
  connection.Send(method, target, body, answer);
  RETURN_IF_ERROR(loop.RunUntil([&] { return answer.done(); }, timeout));
  return answer.Take();
}

absl::Status SseParser::Add(
    std::string_view bytes,
    const std::function<void(std::string_view)>& on_data) {
  // Most pieces are whole events: nothing is copied then.
  const bool joins = !pending_.empty();
  size_t from = 0;
  if (joins) {
    from = pending_.size() - std::min<size_t>(pending_.size(), 3);
    pending_.append(bytes);
  }
  const std::string_view text = joins ? pending_ : bytes;
  size_t begin = 0;  // of the event that is looked at
  for (size_t end; (end = EventEnd(text, from)) != std::string_view::npos;) {
    DeliverEvent(text.substr(begin, end - begin), last_event_id_, on_data);
    begin = from = end;
  }
  if (joins) {
    pending_.erase(0, begin);
  } else {
    pending_ = std::string(text.substr(begin));
  }
  if (pending_.size() > kMaxEventBytes) {
    return absl::ResourceExhaustedError(
        Cat("an event of more than ", kMaxEventBytes, " bytes"));
  }
  return absl::OkStatus();
}

}  // namespace moebius
