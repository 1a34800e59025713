// Streamed completions as a client sees them, with the times of their events.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "deploy/client/event_loop.h"
#include "deploy/client/http_client.h"
#include "nlohmann/json.hpp"

namespace moebius {

using Clock = std::chrono::steady_clock;
double MillisecondsBetween(Clock::time_point from, Clock::time_point to);

// What a completion was.
struct CompletionResult {
  absl::Status status;  // OK: it came whole, to `data: [DONE]`
  Clock::time_point sent;
  // When each event came that carried output (several that came in one piece
  // have one time).
  std::vector<Clock::time_point> times;
  uint64_t prompt_tokens = 0, output_tokens = 0;  // from its usage event
  std::string finish_reason;
  int times_resumed = 0;
  // With CompletionOptions::keep_output only.
  std::string text;
  std::vector<size_t> text_ends;  // [times.size()] bytes of text at each event
  std::vector<int64_t> token_ids;
};

struct CompletionOptions {
  // Parses every event. Otherwise only the last ones are looked into, which is
  // what makes a client cheap: one core takes far more than 20,000 events/s.
  bool keep_output = false;
  // A stream that breaks off is asked for again, from where it was, for this
  // long: the coordinator may be replaced meanwhile.
  absl::Duration resume_for = absl::ZeroDuration();
};

// CompletionStream
//
// One completion after the other over one connection.
// Threading: the loop's thread. Destroying it breaks off what is under way.
class CompletionStream : private HttpListener {
 public:
  using OnEvent = std::function<void()>;
  using OnDone = std::function<void(CompletionResult)>;

  CompletionStream(EventLoop& loop, const Url& url, CompletionOptions options)
      : loop_(loop), connection_(loop, url), options_(options) {}

  // Posts `body` (which asks for "stream") to `target`. `on_event` runs for
  // each output event, `on_done` once; a new one may begin in there.
  // REQUIRES: none is under way.
  void Begin(std::string_view target, const std::string& body, OnEvent on_event,
             OnDone on_done);

  bool busy() const { return busy_; }
  // Of the one under way.
  const CompletionResult& current() const { return result_; }

 private:
  void OnStatus(int status) override;
  void OnBody(std::string_view bytes) override;
  void OnEnd(const absl::Status& status) override;
  void OnData(std::string_view data);
  void Parse(std::string_view data);

  void Send();
  bool Resume();

  EventLoop& loop_;
  HttpConnection connection_;
  std::string target_, body_, key_;  // for asking again
  Clock::time_point resume_until_;
  // What comes after us may outlive us.
  std::shared_ptr<bool> alive_ = std::make_shared<bool>(true);
  const CompletionOptions options_;
  OnEvent on_event_;
  OnDone on_done_;
  bool busy_ = false;
  bool ended_ = false;  // "[DONE]" came
  int http_status_ = 0;
  std::string error_body_;
  std::string last_events_[2];  // the finish and the usage come last
  Clock::time_point now_;       // of the piece that is being taken apart
  absl::Status failed_;
  SseParser sse_;
  CompletionResult result_;
};

// The body of a streamed completion of token ids.
nlohmann::json CompletionBody(const std::string& model,
                              const nlohmann::json& prompt, int max_tokens,
                              bool ignore_eos);

// Prompts of an exact number of tokens, each different: windows of our own
// words in the server's own tokens.
class PromptSource {
 public:
  // Asks `POST /tokenize`.
  static absl::StatusOr<PromptSource> Fetch(EventLoop& loop, const Url& url,
                                            const std::string& model);
  std::vector<int64_t> Prompt(int index, int num_tokens) const;

 private:
  std::vector<int64_t> tokens_;
};

// The name of the first model that the server has, from GET /v1/models.
absl::StatusOr<std::string> FetchModelName(EventLoop& loop, const Url& url);

}  // namespace moebius
