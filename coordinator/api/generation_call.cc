#include "coordinator/api/generation_call.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_format.h"
#include "common/base/cat.h"
#include "coordinator/api/event_id.h"

namespace moebius {
namespace {

double Seconds(GenerationCall::Clock::duration duration) {
  return std::chrono::duration<double>(duration).count();
}

HttpResponse StreamHead() {
  HttpResponse head;
  head.content_type = "text/event-stream; charset=utf-8";
  head.headers.emplace_back("Cache-Control", "no-cache");
  // Asks nginx not to hold events back.
  head.headers.emplace_back("X-Accel-Buffering", "no");
  return head;
}

}  // namespace

GenerationCall::GenerationCall(std::shared_ptr<HttpExchange> exchange,
                               PreparedRequest prepared, AnswerHead head,
                               const TextCodec& codec, FrontMetrics& metrics,
                               Clock::time_point arrived)
    : exchange_(std::move(exchange)),
      prepared_(std::move(prepared)),
      head_(std::move(head)),
      codec_(codec),
      metrics_(metrics),
      arrived_(arrived),
      route_(exchange_->request().path),
      writer_(head_, prepared_.include_usage),
      choices_(prepared_.generations.size()),
      num_unfinished_(static_cast<int>(choices_.size())) {
  for (const Generation& generation : prepared_.generations) {
    stops_.push_back(generation.stop);
  }
}

void GenerationCall::Start(Clock::time_point now) {
  if (!prepared_.stream || started_ || failed_) return;
  started_ = true;
  last_write_ = now;
  exchange_->StartStream(StreamHead());
}

void GenerationCall::WriteEventIds() { tag_ = AnswerTag(head_.id); }

void GenerationCall::Fail(const ApiError& error) {
  if (started_ || failed_) return;
  failed_ = true;
  num_unfinished_ = 0;
  for (Choice& choice : choices_) choice.finished = true;
  metrics_.CountRequest(route_, error.http_status);
  exchange_->Respond(ErrorResponse(error));
}

bool GenerationCall::Seen(int index, const Output& output) const {
  return !skip_.empty() && !output.tokens.empty() &&
         choices_[index].num_tokens <= skip_[index];
}

std::vector<RequestId> GenerationCall::UnfinishedIds() const {
  std::vector<RequestId> out;
  for (size_t i = 0; i < ids_.size(); ++i) {
    if (!choices_[i].finished) out.push_back(ids_[i]);
  }
  return out;
}

void GenerationCall::OnOutput(int index, const Output& output,
                              Clock::time_point now) {
  Choice& choice = choices_[index];
  if (choice.finished) return;
  if (!output.refused.ok()) return Fail(EngineError(output.refused));
  if (output.finish == FinishReason::kError) {
    return OnRefused(choice, output, now);
  }
  Start(now);
  if (output.accepted) return;
  choice.prompt_logprobs.insert(choice.prompt_logprobs.end(),
                                output.prompt_logprobs.begin(),
                                output.prompt_logprobs.end());
  CountLatency(choice, output.tokens.size(), now);
  if (output.finish) {
    choice.finished = true;
    --num_unfinished_;
    choice.finish =
        prepared_.score_only && *output.finish != FinishReason::kAbort
            ? FinishInfo{.reason = FinishReason::kLength}
            : ToFinishInfo(*output.finish, output.stop_reason, stops_[index]);
  }
  if (prepared_.score_only) {
    // The one token that had to be generated is nobody's business.
    Output scores;
    if (prepared_.stream && choice.finished) AppendEvent(index, scores);
    return;
  }
  choice.num_tokens += static_cast<int64_t>(output.tokens.size());
  if (!prepared_.stream) return Gather(index, output);
  if (Seen(index, output)) {
    // Offsets of text go on from there.
    if (prepared_.logprobs.any) {
      Logprobs(index, !choice.started, output.tokens);
    }
    choice.started = true;
    return;
  }
  if (output.tokens.empty() && output.text.empty() && !output.finish) return;
  AppendEvent(index, output);
}

// What the workers do not compute: in a stream, whose head is gone, an event
// with the error takes the place of the choice's end.
void GenerationCall::OnRefused(Choice& choice, const Output& output,
                               Clock::time_point now) {
  const ApiError error =
      EngineError(absl::InvalidArgumentError(output.stop_reason));
  if (!prepared_.stream) return Fail(error);
  Start(now);
  choice.finished = true;
  --num_unfinished_;
  absl::StrAppend(&events_, "data: ", ErrorBody(error), "\n\n");
}

void GenerationCall::CountLatency(Choice& choice, size_t num_tokens,
                                  Clock::time_point now) {
  if (num_tokens == 0) return;
  if (choice.timed) {
    metrics_.inter_token().Add(Seconds(now - choice.last_token_at));
  } else {
    metrics_.first_token().Add(Seconds(now - arrived_));
    if (!first_token_at_.has_value()) first_token_at_ = now;
    choice.timed = true;
  }
  choice.last_token_at = now;
}

void GenerationCall::AppendEvent(int index, const Output& output) {
  Choice& choice = choices_[index];
  ChunkEvent event;
  event.index = index;
  event.first = !choice.started;
  event.text = output.text;
  std::string echoed;
  if (event.first && prepared_.echo) {
    echoed = PromptOf(index).text + output.text;
    event.text = echoed;
  }
  std::string logprobs;
  if (prepared_.logprobs.any) {
    logprobs = Logprobs(index, event.first, output.tokens);
    event.logprobs = logprobs;
  }
  if (prepared_.return_token_ids) {
    event.with_token_ids = true;
    event_token_ids_.clear();
    for (const SampledToken& token : output.tokens) {
      event_token_ids_.push_back(token.token);
    }
    event.token_ids = event_token_ids_;
    if (event.first) event.prompt_token_ids = PromptOf(index).ids;
  }
  if (choice.finished) event.finish = choice.finish;
  if (prepared_.continuous_usage) {
    event.usage = Usage{PromptOf(index).num_tokens, choice.num_tokens};
  }
  choice.started = true;
  AppendId();
  writer_.Append(event, &events_);
}

void GenerationCall::AppendId() {
  if (!tag_.has_value()) return;
  counts_.clear();
  for (const Choice& choice : choices_) counts_.push_back(choice.num_tokens);
  events_ += "id: ";
  AppendEventId(*tag_, counts_, &events_);
  events_ += '\n';
}

void GenerationCall::Gather(int index, const Output& output) {
  Choice& choice = choices_[index];
  choice.text.append(output.text);
  for (const SampledToken& token : output.tokens) {
    if (prepared_.return_token_ids) choice.token_ids.push_back(token.token);
    if (prepared_.logprobs.any) choice.scored.push_back(token);
  }
}

std::string GenerationCall::Logprobs(int index, bool with_prompt,
                                     const std::vector<SampledToken>& tokens) {
  Choice& choice = choices_[index];
  std::vector<ScoredToken> scored;
  if (with_prompt && prepared_.echo) {
    const std::vector<int32_t>& ids = PromptOf(index).ids;
    for (int32_t id : ids) scored.push_back({.token = id});
    for (const PromptLogprob& p : choice.prompt_logprobs) {
      if (p.position == 0 || p.position >= ids.size()) continue;
      scored[p.position].logprob = p.logprob;
      // As many as `logprobs` asks for, where `prompt_logprobs` wants more.
      const size_t shown =
          std::min<size_t>(prepared_.logprobs.num_top, p.top.size());
      scored[p.position].top = absl::MakeConstSpan(p.top).first(shown);
    }
  }
  for (const SampledToken& token : tokens) {
    scored.push_back({token.token, token.logprob, token.top});
  }
  std::string out;
  if (prepared_.chat) {
    AppendChatLogprobs(scored, prepared_.logprobs.num_top, codec_, &out);
  } else {
    AppendCompletionLogprobs(scored, codec_, &choice.text_offset, &out);
  }
  return out;
}

Usage GenerationCall::TotalUsage() const {
  Usage usage;
  for (const PreparedPrompt& prompt : prepared_.prompts) {
    usage.prompt_tokens += prompt.num_tokens;
  }
  for (const Choice& choice : choices_) {
    usage.completion_tokens += choice.num_tokens;
  }
  return usage;
}

std::string GenerationCall::WholeBody() {
  std::vector<ChoiceBody> bodies;
  for (size_t i = 0; i < choices_.size(); ++i) {
    const int index = static_cast<int>(i);
    Choice& choice = choices_[i];
    ChoiceBody body;
    body.index = index;
    body.text = prepared_.echo ? PromptOf(index).text + choice.text
                               : std::move(choice.text);
    if (prepared_.logprobs.any) {
      body.logprobs = Logprobs(index, /*with_prompt=*/true, choice.scored);
    }
    // Chats show those of their one prompt once.
    if (prepared_.prompt_logprobs && (!prepared_.chat || i == 0)) {
      AppendPromptLogprobs(choice.prompt_logprobs, PromptOf(index).num_tokens,
                           *prepared_.prompt_logprobs, codec_,
                           &body.prompt_logprobs);
    }
    if (prepared_.return_token_ids) {
      body.with_token_ids = true;
      body.token_ids = std::move(choice.token_ids);
      body.prompt_token_ids = PromptOf(index).ids;
    }
    body.finish = choice.finish;
    bodies.push_back(std::move(body));
  }
  return AnswerBody(head_, bodies, TotalUsage());
}

void GenerationCall::Remark() {
  if (layout_.empty()) return;
  const Usage usage = TotalUsage();
  std::string remark =
      Cat(", ", usage.prompt_tokens, " + ", usage.completion_tokens,
          " tokens, accepted in ", layout_);
  if (first_token_at_.has_value()) {
    absl::StrAppendFormat(&remark, ", first token after %.1f ms",
                          Seconds(*first_token_at_ - arrived_) * 1e3);
  }
  exchange_->Remark(std::move(remark));
}

// A line that begins with a colon is a comment. Behind each the next one is
// begun, and ended in front of what comes: vLLM's benchmark client drops line
// ends at the end of each piece that it reads, and would take the next event
// for more of the comment.
void GenerationCall::SayWaiting(Clock::time_point now,
                                Clock::duration interval) {
  if (!started_ || failed_ || num_unfinished_ == 0 || gone.load()) return;
  if (now - last_write_ < interval) return;
  exchange_->Write(comment_open_ ? " waiting\n\n:" : ": waiting\n\n:");
  exchange_->Flush();
  comment_open_ = true;
  last_write_ = now;
}

void GenerationCall::Flush(Clock::time_point now) {
  if (failed_) return;
  const bool done = num_unfinished_ == 0;
  if (done) Remark();
  if (prepared_.stream) {
    if (done && prepared_.include_usage) {
      AppendId();
      writer_.AppendUsage(TotalUsage(), &events_);
    }
    if (done) ChunkWriter::AppendDone(&events_);
    if (!events_.empty()) {
      if (comment_open_) events_.insert(0, " on\n\n");
      comment_open_ = false;
      exchange_->Write(events_);
      last_write_ = now;
    }
    events_.clear();
    if (done) {
      exchange_->FinishStream();
    } else {
      exchange_->Flush();
    }
  } else if (done) {
    HttpResponse response;
    response.body = WholeBody();
    exchange_->Respond(std::move(response));
  }
  if (done) {
    metrics_.request().Add(Seconds(now - arrived_));
    metrics_.CountRequest(route_, 200);
  }
}

}  // namespace moebius
