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
                                : engine_->Submit({std::move(generation)},
                                                  std::to_string(index));
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
  request.submitted = true;
  by_id_[request.id.value] = index;
  world_->Note("submitted", -1, request.id.value, request.ask);
  if (request.abort_at_us >= 0) {
    world_->After(request.abort_at_us, [this, index] { Abort(index); });
  }
}

// It was not accepted after all.
void Front::Resubmit(size_t index) {
  Request& request = requests_[index];
  by_id_.erase(request.id.value);
  request.submitted = false;
  world_->After(kRetryUs, [this, index] { Submit(index); });
}

void Front::SetEngine(Engine* engine, const JournalState* journal) {
  engine_ = engine;
  if (engine == nullptr || journal == nullptr) return;
  std::map<size_t, RequestId> known;
  for (const auto& [first, request] : journal->requests()) {
    const auto& finish = request.choices[0].finish;
    if (finish.has_value() && finish->reason == FinishReason::kAbort) continue;
    const size_t index = std::stoul(request.context);
    if (!known.emplace(index, first).second) {
      world_->Violate('A', Cat("request ", first.value, " was accepted twice"));
    }
  }
  for (size_t i = 0; i < requests_.size(); ++i) {
    Request& request = requests_[i];
    if (!request.submitted) continue;
    const auto found = known.find(i);
    if (found == known.end()) {
      if (request.accepted && !request.aborted) {
        world_->Violate('A', Cat("request ", request.id.value,
                                 " was accepted and is forgotten"));
      } else if (!request.aborted) {
        Resubmit(i);
      }
      continue;
    }
    if (found->second != request.id) {
      world_->Violate('A', Cat("request ", request.id.value, " came back as ",
                               found->second.value));
    }
    request.accepted = true;
    if (request.aborted) {
      request.attaching = true;
      engine_->Abort(request.id);
    } else {
      Attach(i);
    }
  }
}

// All that was said, then what follows: nothing that the client has heard may
// be missing.
void Front::Attach(size_t index) {
  requests_[index].attaching = true;
  engine_->Attach({requests_[index].id}, [this, index](auto outputs) {
    Request& request = requests_[index];
    if (!outputs.ok()) {
      world_->Violate('A', Cat("request ", request.id.value, ": ",
                               outputs.status().ToString()));
      return;
    }
    const size_t heard = request.tokens.size();
    const bool finished = request.finished;
    request.tokens.clear();
    request.prompt_logprobs.clear();
    request.attaching = request.finished = false;
    world_->Note("attached", -1, request.id.value, heard);
    for (const Output& output : *outputs) Take(index, output);
    if (repetition_allowed_) return;
    if (request.tokens.size() < heard || (finished && !request.finished)) {
      world_->Violate('B', Cat("request ", request.id.value, " had ", heard,
                               " tokens and has ", request.tokens.size(),
                               " after its coordinator came back"));
    }
  });
}

void Front::Abort(size_t index) {
  Request& request = requests_[index];
  if (request.finished || aborts_stopped_ || engine_ == nullptr ||
      !request.submitted) {
    return;
  }
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
    if (!requests_[found->second].attaching) Take(found->second, output);
  }
}

void Front::Take(size_t index, const Output& output) {
  Request& request = requests_[index];
  const std::string name = Cat("request ", request.id.value);
  if (request.finished) {
    world_->Violate('B', Cat(name, " has output after its end"));
    return;
  }
  if (output.accepted) request.accepted = true;
  if (!output.refused.ok()) {
    if (request.accepted) {
      world_->Violate('A', Cat(name, " was accepted and then refused"));
    }
    world_->Note("refused", -1, request.id.value);
    Resubmit(index);
    return;
  }
  // A coordinator that gives up ends every stream; its successor goes on.
  if (output.finish == FinishReason::kAbort) return;
  TakeTokens(request, output);
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

void Front::TakeTokens(Request& request, const Output& output) {
  const std::string name = Cat("request ", request.id.value);
  const Ask& ask = (*asks_)[request.ask];
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
