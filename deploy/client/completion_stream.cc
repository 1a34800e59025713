#include "deploy/client/completion_stream.h"

#include <unistd.h>

#include <utility>

#include "common/base/cat.h"
#include "common/base/check.h"
#include "common/base/status_macros.h"
#include "deploy/client/admin_client.h"

namespace moebius {
namespace {

using Json = nlohmann::json;

constexpr size_t kMaxErrorBytes = 4096;

constexpr char kWords[] =
    "A caravan left the walled town before sunrise, nineteen camels and as "
    "many drivers, with salt, copper and dates for the markets of the south. "
    "The elders counted the water skins twice and spoke of the wells between "
    "the two mountains, which had been dry in the year of the great wind. "
    "Population and economy of the coast depend on fishing, cotton and the "
    "harbour, through which half of the exports pass; the interior lives on "
    "cattle and on small farms along the river. And it came to pass in the "
    "evening that the children of the valley gathered at the gate, and the "
    "oldest of them said: who has seen the land beyond the hills, let him "
    "speak, and we will hear him. Government is by an assembly of sixty-two "
    "members, elected for five years; the courts are independent of it. ";

const Json& FirstChoice(const Json& event) {
  static const auto* empty = new Json(Json::object());
  const auto choices = event.find("choices");
  if (choices == event.end() || !choices->is_array() || choices->empty()) {
    return *empty;
  }
  return (*choices)[0];
}

}  // namespace

double MillisecondsBetween(Clock::time_point from, Clock::time_point to) {
  return std::chrono::duration<double, std::milli>(to - from).count();
}

void CompletionStream::Begin(std::string_view target, const std::string& body,
                             OnEvent on_event, OnDone on_done) {
  CHECK(!busy_);
  busy_ = true;
  ended_ = false;
  http_status_ = 0;
  error_body_.clear();
  for (std::string& event : last_events_) event.clear();
  failed_ = absl::OkStatus();
  sse_ = SseParser();
  result_ = CompletionResult();
  on_event_ = std::move(on_event);
  on_done_ = std::move(on_done);
  result_.sent = Clock::now();
  target_ = target;
  body_ = body;
  if (options_.resume_for > absl::ZeroDuration()) {
    static uint64_t next_key = 0;
    key_ = Cat("stream-", ::getpid(), "-", ++next_key);
    resume_until_ =
        Clock::now() + absl::ToChronoNanoseconds(options_.resume_for);
  }
  Send();
}

void CompletionStream::Send() {
  std::string headers;
  if (!key_.empty()) headers = Cat("Idempotency-Key: ", key_, "\r\n");
  if (!sse_.last_event_id().empty()) {
    headers += Cat("Last-Event-ID: ", sse_.last_event_id(), "\r\n");
  }
  connection_.Send("POST", target_, body_, *this, headers);
}

// Asks for the rest in a moment, if that may help.
bool CompletionStream::Resume() {
  if (key_.empty() || ended_ || !failed_.ok() ||
      Clock::now() >= resume_until_) {
    return false;
  }
  ++result_.times_resumed;
  const std::string last = sse_.last_event_id();
  sse_ = SseParser(last);
  http_status_ = 0;
  error_body_.clear();
  constexpr absl::Duration kPause = absl::Milliseconds(20);
  loop_.After(kPause, [this, alive = std::weak_ptr<bool>(alive_)] {
    if (!alive.expired()) Send();
  });
  return true;
}

void CompletionStream::OnStatus(int status) { http_status_ = status; }

void CompletionStream::OnBody(std::string_view bytes) {
  if (http_status_ != 200) {
    error_body_.append(bytes.substr(
        0, kMaxErrorBytes - std::min(kMaxErrorBytes, error_body_.size())));
    return;
  }
  now_ = Clock::now();
  const absl::Status status =
      sse_.Add(bytes, [this](std::string_view data) { OnData(data); });
  if (!status.ok()) failed_ = status;
}

void CompletionStream::OnData(std::string_view data) {
  if (data == "[DONE]") {
    ended_ = true;
    return;
  }
  if (options_.keep_output) {
    Parse(data);
  } else {
    std::swap(last_events_[0], last_events_[1]);
    last_events_[1].assign(data);
  }
  // The event of the usage has no choice in it.
  if (data.find("\"choices\":[]") != std::string_view::npos) return;
  result_.times.push_back(now_);
  if (options_.keep_output) result_.text_ends.push_back(result_.text.size());
  if (on_event_) on_event_();
}

void CompletionStream::Parse(std::string_view data) {
  const Json event = Json::parse(data, nullptr, false);
  if (!event.is_object()) {
    failed_ = absl::InternalError(
        Cat("an event is not a JSON object: ", data.substr(0, 100)));
    return;
  }
  if (event.contains("error")) {
    failed_ = absl::InternalError(TextAt(ObjectAt(event, "error"), "message"));
    return;
  }
  if (const Json& usage = ObjectAt(event, "usage"); !usage.empty()) {
    result_.prompt_tokens = CountAt(usage, "prompt_tokens");
    result_.output_tokens = CountAt(usage, "completion_tokens");
  }
  const Json& choice = FirstChoice(event);
  result_.text += TextAt(choice, "text");
  if (const std::string reason = TextAt(choice, "finish_reason");
      !reason.empty()) {
    result_.finish_reason = reason;
  }
  const auto ids = choice.find("token_ids");
  if (ids == choice.end() || !ids->is_array()) return;
  for (const Json& id : *ids) {
    if (id.is_number_integer()) result_.token_ids.push_back(id.get<int64_t>());
  }
}

void CompletionStream::OnEnd(const absl::Status& status) {
  const bool broken =
      !status.ok() || http_status_ == 503 || (http_status_ == 200 && !ended_);
  if (broken && Resume()) return;
  busy_ = false;
  if (!options_.keep_output && http_status_ == 200) {
    for (const std::string& event : last_events_) {
      if (!event.empty()) Parse(event);
    }
    result_.text.clear();
    result_.token_ids.clear();
  }
  if (!status.ok()) {
    result_.status = status;
  } else if (http_status_ != 200) {
    result_.status = ParseAnswer({http_status_, error_body_}).status();
  } else if (!failed_.ok()) {
    result_.status = failed_;
  } else if (!ended_) {
    result_.status =
        absl::InternalError("the stream ended without data: [DONE]");
  }
  OnDone on_done = std::move(on_done_);
  on_done(std::move(result_));
}

Json CompletionBody(const std::string& model, const Json& prompt,
                    int max_tokens, bool ignore_eos) {
  return {{"model", model},
          {"prompt", prompt},
          {"max_tokens", max_tokens},
          {"ignore_eos", ignore_eos},
          {"stream", true},
          {"stream_options", {{"include_usage", true}}}};
}

absl::StatusOr<PromptSource> PromptSource::Fetch(EventLoop& loop,
                                                 const Url& url,
                                                 const std::string& model) {
  const Json body = {
      {"model", model}, {"prompt", kWords}, {"add_special_tokens", false}};
  ASSIGN_OR_RETURN(const HttpAnswer answer,
                   HttpRequest(loop, url, "POST", "/tokenize", body.dump(),
                               absl::Seconds(30)));
  ASSIGN_OR_RETURN(const Json parsed, ParseAnswer(answer));
  PromptSource source;
  const auto tokens = parsed.find("tokens");
  if (tokens != parsed.end() && tokens->is_array()) {
    for (const Json& token : *tokens) {
      if (token.is_number_integer()) {
        source.tokens_.push_back(token.get<int64_t>());
      }
    }
  }
  if (source.tokens_.empty()) {
    return absl::InternalError("POST /tokenize gave no tokens");
  }
  return source;
}

std::vector<int64_t> PromptSource::Prompt(int index, int num_tokens) const {
  // Steps of a prime, so that prompts begin at different words; the text goes
  // round.
  const size_t begin = static_cast<size_t>(index) * 31 % tokens_.size();
  std::vector<int64_t> prompt;
  for (int i = 0; i < num_tokens; ++i) {
    prompt.push_back(
        tokens_[(begin + static_cast<size_t>(i)) % tokens_.size()]);
  }
  return prompt;
}

absl::StatusOr<std::string> FetchModelName(EventLoop& loop, const Url& url) {
  ASSIGN_OR_RETURN(
      const HttpAnswer answer,
      HttpRequest(loop, url, "GET", "/v1/models", "", absl::Seconds(30)));
  ASSIGN_OR_RETURN(const Json models, ParseAnswer(answer));
  const auto data = models.find("data");
  if (data != models.end() && data->is_array() && !data->empty()) {
    const std::string name = TextAt((*data)[0], "id");
    if (!name.empty()) return name;
  }
  return absl::InternalError("GET /v1/models names no model");
}

}  // namespace moebius
