#include "tests/simulation/front.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "common/cat.h"

namespace moebius::simulation {
namespace {

constexpr int64_t kRetryUs = 20'000;

SampledToken WithoutSlot(SampledToken token) {
  token.slot = 0;
  return token;
}
PromptLogprob WithoutSlot(PromptLogprob logprob) {
  logprob.slot = 0;
  return logprob;
}

}  // namespace

void Front::SubmitAt(int64_t time_us, int ask, int max_tokens,
                     int64_t abort_after_us) {
  Request request;
  request.ask = ask;
  request.max_tokens = max_tokens;
  request.abort_at_us = abort_after_us < 0 ? -1 : abort_after_us;
  requests_.push_back(std::move(request));
  const size_t index = requests_.size() - 1;
  world_->At(time_us, [this, index] { Submit(index); });
}

void Front::Submit(size_t index) {
  Request& request = requests_[index];
  const Ask& ask = (*asks_)[request.ask];
  Generation generation;
  generation.prompt = ask.prompt;
  generation.sampling = ask.sampling;
  generation.stop.max_tokens = request.max_tokens;
  auto ids = engine_ == nullptr ? absl::StatusOr<std::vector<RequestId>>(
                                      absl::UnavailableError("no coordinator"))
                                : engine_->Submit({std::move(generation)});
  if (absl::IsUnavailable(ids.status()) ||
      absl::IsResourceExhausted(ids.status())) {
    world_->After(kRetryUs, [this, index] { Submit(index); });
    return;
  }
  if (!ids.ok()) {
    world_->Violate('A',
                    Cat("a request was refused: ", ids.status().ToString()));
    return;
  }
  request.id = ids->front();
  request.accepted = true;
  request.accepted_us = world_->now_us();
  by_id_[request.id.value] = index;
  world_->Note("accepted", -1, request.id.value, request.ask);
  if (request.abort_at_us >= 0) {
    world_->After(request.abort_at_us, [this, index] { Abort(index); });
  }
}

void Front::Abort(size_t index) {
  Request& request = requests_[index];
  if (request.finished || aborts_stopped_) return;
  request.aborted = true;
  world_->Note("aborted", -1, request.id.value);
  world_->CountFault("request aborted");
  engine_->Abort(request.id);
}

void Front::Hear(std::vector<Output> outputs) {
  for (const Output& output : outputs) {
    const auto found = by_id_.find(output.request.value);
    if (found == by_id_.end()) {
      world_->Violate('B', Cat("output of request ", output.request.value,
                               ", which nobody made"));
      return;
    }
    Take(requests_[found->second], output);
  }
}

void Front::Take(Request& request, const Output& output) {
  const Ask& ask = (*asks_)[request.ask];
  const std::string name = Cat("request ", request.id.value);
  if (request.finished) {
    world_->Violate('B', Cat(name, " has output after its end"));
    return;
  }
  for (const PromptLogprob& logprob : output.prompt_logprobs) {
    request.prompt_logprobs.push_back(WithoutSlot(logprob));
  }
  for (const SampledToken& sampled : output.tokens) {
    const size_t index = request.tokens.size();
    if (sampled.position != ask.prompt.size() + index) {
      world_->Violate('B',
                      Cat(name, " has the token of position ", sampled.position,
                          " where ", ask.prompt.size() + index, " is next"));
      return;
    }
    request.tokens.push_back(WithoutSlot(sampled));
    last_token_us_ = world_->now_us();
    if (request.first_us < 0) request.first_us = last_token_us_;
    world_->Note("token", static_cast<int>(request.id.value), sampled.position,
                 static_cast<uint64_t>(sampled.token));
    if (answers_ == nullptr) continue;
    const Answer& answer = (*answers_)[request.ask];
    if (!(request.tokens.back() == answer.tokens[index])) {
      world_->Violate(
          'O', Cat(name, " (ask ", request.ask, ") has token ", sampled.token,
                   " of log-probability ", sampled.logprob, " at ", index,
                   ", not ", answer.tokens[index].token, " of ",
                   answer.tokens[index].logprob));
      return;
    }
    if (index == 0 && request.prompt_logprobs != answer.prompt_logprobs) {
      world_->Violate('O', Cat(name,
                               " has other log-probabilities of its "
                               "prompt than a quiet group gives"));
    }
  }
  if (!output.finish.has_value()) return;
  request.finished = true;
  request.finished_us = world_->now_us();
  const bool whole =
      request.tokens.size() == static_cast<size_t>(request.max_tokens);
  if (!whole || *output.finish != FinishReason::kLength) {
    world_->Violate('A',
                    Cat(name, " ended after ", request.tokens.size(), " of ",
                        request.max_tokens, " tokens: ", output.stop_reason));
  }
}

bool Front::all_done() const {
  return std::all_of(requests_.begin(), requests_.end(),
                     [](const Request& r) { return r.finished || r.aborted; });
}

std::string Front::Unfinished() const {
  std::string text;
  for (const Request& r : requests_) {
    if (r.finished || r.aborted) continue;
    text += r.accepted ? Cat(" ", r.id.value, " (", r.tokens.size(), " of ",
                             r.max_tokens, " tokens)")
                       : std::string(" one that was never accepted");
  }
  return text;
}

}  // namespace moebius::simulation
