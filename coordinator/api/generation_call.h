// One request on its way through the engine, and the answer as it grows.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "common/base/ids.h"
#include "coordinator/api/generation_request.h"
#include "coordinator/api/openai_response.h"
#include "coordinator/http/api_error.h"
#include "coordinator/http/http_message.h"
#include "coordinator/status/front_metrics.h"

namespace moebius {

// GenerationCall
//
// Takes the engine's outputs and writes the answer: events as they come, or one
// body at the end. The head of a stream goes out once the request is accepted.
//
// With WriteEventIds() each event has an id (event_id.h) that says how many
// tokens of each choice the client has with it. A client that comes back with
// it gets what follows. Others get none: many clients of benchmarks take an
// event for one line, which begins with "data: ".
//
// Threading: the exchange's thread only.
class GenerationCall {
 public:
  using Clock = std::chrono::steady_clock;

  // `prepared.generations` is taken by the caller, all but their stop criteria.
  // `codec` and `metrics` outlive the call.
  GenerationCall(std::shared_ptr<HttpExchange> exchange,
                 PreparedRequest prepared, AnswerHead head,
                 const TextCodec& codec, FrontMetrics& metrics,
                 Clock::time_point arrived);

  // ids[i] is of choice i.
  void SetIds(std::vector<RequestId> ids) { ids_ = std::move(ids); }
  const std::vector<RequestId>& ids() const { return ids_; }
  // Before the first output:
  void WriteEventIds();
  // For the log, of what was accepted in this layout.
  void RemarkFrom(std::string layout) { layout_ = std::move(layout); }
  // The client has so many tokens of each choice.
  void SkipTo(std::vector<int64_t> counts) { skip_ = std::move(counts); }
  bool resumes() const { return !skip_.empty(); }
  // There is nothing to answer with.
  void Fail(const ApiError& error);

  // Adds an output to choice `choice`. What is to be sent waits for Flush().
  void OnOutput(int choice, const Output& output, Clock::time_point now);
  // Sends, and completes the answer if every choice is finished.
  void Flush(Clock::time_point now);
  // Sends a comment if this is a stream on which nothing was sent for
  // `interval`.
  void SayWaiting(Clock::time_point now, Clock::duration interval);

  // Ids of the choices that are not finished yet.
  std::vector<RequestId> UnfinishedIds() const;

  HttpExchange& exchange() { return *exchange_; }
  const std::string& route() const { return route_; }

  // Whether this is in the list of calls to flush.
  bool dirty = false;
  // Its client has gone. Any thread.
  std::atomic<bool> gone{false};

 private:
  struct Choice {
    bool started = false;  // an event was sent
    bool finished = false;
    bool timed = false;  // last_token_at is set
    int64_t num_tokens = 0;
    int64_t text_offset = 0;
    Clock::time_point last_token_at;
    std::vector<PromptLogprob> prompt_logprobs;
    // Of a whole answer:
    std::string text;
    std::vector<int32_t> token_ids;
    std::vector<SampledToken> scored;
    FinishInfo finish;
  };

  void Start(Clock::time_point now);
  // Whether the client has this already.
  bool Seen(int index, const Output& output) const;
  void AppendId();
  void AppendEvent(int index, const Output& output);
  void Gather(int index, const Output& output);
  // Serialised log-probabilities of the choice's prompt (if it is to be shown
  // and `with_prompt`) and of `tokens`.
  std::string Logprobs(int index, bool with_prompt,
                       const std::vector<SampledToken>& tokens);
  void OnRefused(Choice& choice, const Output& output, Clock::time_point now);
  void CountLatency(Choice& choice, size_t num_tokens, Clock::time_point now);
  std::string WholeBody();
  void Remark();
  const PreparedPrompt& PromptOf(int index) const {
    return prepared_.prompts[index / prepared_.n];
  }
  Usage TotalUsage() const;

  const std::shared_ptr<HttpExchange> exchange_;
  const PreparedRequest prepared_;
  const AnswerHead head_;
  const TextCodec& codec_;
  FrontMetrics& metrics_;
  const Clock::time_point arrived_;
  const std::string route_;
  const ChunkWriter writer_;
  std::vector<StopCriteria> stops_;  // [choice]
  std::vector<RequestId> ids_;       // [choice]
  std::vector<Choice> choices_;
  std::vector<int64_t> skip_;    // [choice]; empty: nothing
  std::optional<uint32_t> tag_;  // of the answer in ids of events, if any
  std::string layout_;           // "": no remark is wanted
  std::optional<Clock::time_point> first_token_at_;
  bool started_ = false;  // the head of a stream is out
  Clock::time_point last_write_;
  bool comment_open_ = false;  // its line has not ended
  bool failed_ = false;
  int num_unfinished_;
  std::string events_;                    // to be written at Flush
  std::vector<int32_t> event_token_ids_;  // scratch
  std::vector<int64_t> counts_;           // scratch
};

}  // namespace moebius
