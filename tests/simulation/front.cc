#include "tests/simulation/front.h"

#include <algorithm>
#include <utility>

#include "common/base/cat.h"
#include "common/base/printable.h"

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

void Front::SubmitAt(int64_t time_us, std::vector<Wish> wishes,
                     int64_t abort_after_us) {
  const size_t call = calls_.size();
  calls_.push_back({choices_.size(), wishes.size(), abort_after_us});
  for (Wish& wish : wishes) {
    Choice choice;
    choice.call = call;
    const auto ask = static_cast<size_t>(wish.ask);
    if (wish.refused) {
      choice.ending = EndingOfRefused(model_, (*asks_)[ask]);
    } else if (answers_ != nullptr) {
      choice.ending = EndingOf(wish.stop, (*answers_)[ask]);
    }
    choice.wish = std::move(wish);
    choices_.push_back(std::move(choice));
  }
  world_->At(time_us, [this, call] { Submit(call); });
}

void Front::Submit(size_t call) {
  std::vector<Generation> generations;
  for (const Choice& choice : ChoicesOf(call)) {
    const Ask& ask = (*asks_)[static_cast<size_t>(choice.wish.ask)];
    generations.push_back(
        {choice.wish.refused ? RefusedPrompt(model_, ask) : ask.prompt,
         ask.sampling, choice.wish.stop});
  }
  auto ids = engine_ == nullptr
                 ? absl::StatusOr<std::vector<RequestId>>(
                       absl::UnavailableError("no coordinator"))
                 : engine_->Submit(std::move(generations), Cat(call));
  if (absl::IsUnavailable(ids.status()) ||
      absl::IsResourceExhausted(ids.status())) {
    world_->After(kRetryUs, [this, call] { Submit(call); });
    return;
  }
  if (!ids.ok()) {
    world_->Violate('A',
                    Cat("a request was refused: ", ids.status().ToString()));
    return;
  }
  for (size_t i = 0; i < ids->size(); ++i) {
    Choice& choice = ChoicesOf(call)[i];
    choice.id = (*ids)[i];
    choice.refused = false;
    by_id_[choice.id.value] = calls_[call].first + i;
    refused_.erase(choice.id.value);
    world_->Note("submitted", -1, choice.id.value,
                 static_cast<uint64_t>(choice.wish.ask));
  }
  calls_[call].submitted = true;
  if (ids->size() > 1) world_->CountFault("request of several choices");
  if (calls_[call].abort_after_us >= 0) {
    world_->After(calls_[call].abort_after_us, [this, call] { Abort(call); });
  }
}

// It was not accepted after all.
void Front::Resubmit(size_t call) {
  for (const Choice& choice : ChoicesOf(call)) by_id_.erase(choice.id.value);
  calls_[call].submitted = false;
  world_->After(kRetryUs, [this, call] { Submit(call); });
}

void Front::SetEngine(Engine* engine, const JournalState* journal, bool again) {
  engine_ = engine;
  journal_ = journal;
  if (engine == nullptr || !again) return;
  std::map<size_t, RequestId> known;  // the first choices' ids, by call
  for (const auto& [first, request] : journal->requests()) {
    const bool given_up = std::all_of(
        request.choices.begin(), request.choices.end(), [](const auto& choice) {
          return choice.finish.has_value() &&
                 choice.finish->reason == FinishReason::kAbort;
        });
    if (given_up) continue;
    if (refused_.contains(first.value)) continue;
    const size_t call = std::stoul(request.context);
    if (!known.emplace(call, first).second) {
      world_->Violate('A', Cat("request ", first.value, " was accepted twice"));
    }
    if (request.choices.size() != calls_[call].size) {
      world_->Violate(
          'A', Cat("request ", first.value, " came back with ",
                   request.choices.size(), " choices of ", calls_[call].size));
    }
  }
  for (size_t call = 0; call < calls_.size(); ++call) {
    if (!calls_[call].submitted) continue;
    const auto found = known.find(call);
    ComeBack(call, found == known.end() ? nullptr : &found->second);
  }
}

// A client turns to a new coordinator, which knows its request by that id.
void Front::ComeBack(size_t call, const RequestId* first) {
  const absl::Span<Choice> choices = ChoicesOf(call);
  const bool gone = choices[0].aborted;
  if (first == nullptr) {
    if (gone) return;
    for (const Choice& choice : choices) {
      if (choice.accepted) {
        world_->Violate('A', Cat("request ", choice.id.value,
                                 " was accepted and is forgotten"));
      }
    }
    return Resubmit(call);
  }
  if (*first != choices[0].id) {
    world_->Violate('A', Cat("request ", choices[0].id.value, " came back as ",
                             first->value));
  }
  for (Choice& choice : choices) choice.accepted = choice.attaching = true;
  if (!gone) return Attach(call);
  for (const Choice& choice : choices) engine_->Abort(choice.id);
}

// All that was said, then what follows: nothing that the client has heard may
// be missing.
void Front::Attach(size_t call) {
  std::vector<RequestId> ids;
  for (const Choice& choice : ChoicesOf(call)) ids.push_back(choice.id);
  engine_->Attach(std::move(ids), [this, call](auto outputs) {
    if (!outputs.ok()) {
      world_->Violate('A', Cat("request ", ChoicesOf(call)[0].id.value, ": ",
                               outputs.status().ToString()));
      return;
    }
    const std::vector<Choice> heard(ChoicesOf(call).begin(),
                                    ChoicesOf(call).end());
    for (Choice& choice : ChoicesOf(call)) {
      world_->Note("attached", -1, choice.id.value, choice.tokens.size());
      choice.tokens.clear();
      choice.text.clear();
      choice.prompt_logprobs.clear();
      choice.attaching = choice.finished = false;
    }
    Hear(*std::move(outputs));
    if (repetition_allowed_) return;
    for (const Choice& before : heard) {
      const Choice& now = choices_[by_id_.at(before.id.value)];
      if (now.tokens.size() < before.tokens.size() ||
          now.text.size() < before.text.size() ||
          (before.finished && !now.finished)) {
        world_->Violate(
            'B', Cat("request ", now.id.value, " had ", before.tokens.size(),
                     " tokens and has ", now.tokens.size(),
                     " after its coordinator came back"));
      }
    }
  });
}

void Front::Abort(size_t call) {
  if (aborts_stopped_ || engine_ == nullptr || !calls_[call].submitted) return;
  const absl::Span<Choice> choices = ChoicesOf(call);
  if (std::all_of(choices.begin(), choices.end(),
                  [](const Choice& choice) { return choice.over(); })) {
    return;
  }
  world_->Note("aborted", -1, choices[0].id.value);
  world_->CountFault("request aborted");
  for (Choice& choice : choices) {
    choice.aborted = true;
    engine_->Abort(choice.id);
  }
}

void Front::Hear(std::vector<Output> outputs) {
  if (engine_ == nullptr) return;  // the run ends: nobody listens any more
  for (const Output& output : outputs) {
    const auto found = by_id_.find(output.request.value);
    if (found == by_id_.end()) {
      if (refused_.contains(output.request.value)) continue;
      world_->Violate('B', Cat("output of request ", output.request.value,
                               ", which nobody made"));
      return;
    }
    Choice& choice = choices_[found->second];
    if (!choice.attaching) Take(choice, output);
  }
}

void Front::Take(Choice& choice, const Output& output) {
  if (choice.finished) {
    world_->Violate(
        'B', Cat("request ", choice.id.value, " has output after its end"));
    return;
  }
  if (output.accepted) choice.accepted = true;
  if (!output.refused.ok()) return OnRefused(choice);
  // A coordinator that gives up ends every stream; its successor goes on.
  if (output.finish == FinishReason::kAbort) return;
  TakeTokens(choice, output);
  choice.text += output.text;
  if (output.finish.has_value()) TakeEnd(choice, output);
}

// The rest of the request must be refused too.
void Front::OnRefused(Choice& choice) {
  world_->Note("refused", -1, choice.id.value);
  choice.refused = true;
  refused_.insert(choice.id.value);
  const absl::Span<Choice> choices = ChoicesOf(choice.call);
  for (const Choice& other : choices) {
    if (other.accepted) {
      world_->Violate('A', Cat("request ", choice.id.value, " was refused and ",
                               other.id.value, " of the same was accepted"));
    }
  }
  if (!choice.aborted &&
      std::all_of(choices.begin(), choices.end(),
                  [](const Choice& other) { return other.refused; })) {
    Resubmit(choice.call);
  }
}

void Front::TakeTokens(Choice& choice, const Output& output) {
  const std::string name = Cat("request ", choice.id.value);
  const auto ask = static_cast<size_t>(choice.wish.ask);
  const size_t prompt_size = (*asks_)[ask].prompt.size();
  for (const PromptLogprob& logprob : output.prompt_logprobs) {
    choice.prompt_logprobs.push_back(WithoutSlot(logprob));
  }
  for (const SampledToken& sampled : output.tokens) {
    const size_t index = choice.tokens.size();
    if (sampled.position != prompt_size + index) {
      world_->Violate('B',
                      Cat(name, " has the token of position ", sampled.position,
                          " where ", prompt_size + index, " is next"));
      return;
    }
    choice.tokens.push_back(WithoutSlot(sampled));
    last_token_us_ = world_->now_us();
    if (choice.first_us < 0) choice.first_us = last_token_us_;
    world_->Note("token", static_cast<int>(choice.id.value), sampled.position,
                 static_cast<uint64_t>(sampled.token));
    if (answers_ == nullptr) continue;
    if (index >= choice.ending.num_tokens) {
      world_->Violate('A', Cat(name, " has more than ", index, " tokens"));
      return;
    }
    const Answer& answer = (*answers_)[ask];
    if (!(choice.tokens.back() == answer.tokens[index])) {
      world_->Violate(
          'O', Cat(name, " (ask ", ask, ") has token ", sampled.token,
                   " of log-probability ", sampled.logprob, " at ", index,
                   ", not ", answer.tokens[index].token, " of ",
                   answer.tokens[index].logprob));
      return;
    }
    if (index == 0 && choice.prompt_logprobs != answer.prompt_logprobs) {
      world_->Violate('O', Cat(name,
                               " has other log-probabilities of its "
                               "prompt than a quiet group gives"));
    }
  }
}

void Front::TakeEnd(Choice& choice, const Output& output) {
  choice.finished = true;
  if (output.finish == FinishReason::kStop) {
    world_->CountFault("stopped before its length");
  }
  if (output.finish == FinishReason::kError) {
    world_->CountFault("request refused by the workers");
  }
  const JournalChoice* written = journal_->Find(choice.id);
  if (written == nullptr || !written->finish.has_value()) {
    world_->Violate('A', Cat("request ", choice.id.value,
                             " ended before its journal had the end"));
  }
  if (answers_ == nullptr) return;
  const Ending& ending = choice.ending;
  const std::string name = Cat("request ", choice.id.value);
  if (choice.tokens.size() != ending.num_tokens ||
      *output.finish != ending.finish ||
      output.stop_reason != ending.stop_reason) {
    world_->Violate(
        'A', Cat(name, " ended after ", choice.tokens.size(), " tokens by '",
                 output.stop_reason, "', not after ", ending.num_tokens,
                 " by '", ending.stop_reason, "'"));
  }
  if (choice.text != ending.text) {
    world_->Violate('O', Cat(name, " said '", Printable(choice.text, 200),
                             "', not '", Printable(ending.text, 200), "'"));
  }
}

bool Front::all_done() const {
  return std::all_of(choices_.begin(), choices_.end(),
                     [](const Choice& choice) { return choice.over(); });
}

std::string Front::Unfinished() const {
  std::string text;
  for (const Choice& choice : choices_) {
    if (choice.over()) continue;
    text += choice.accepted
                ? Cat(" ", choice.id.value, " (", choice.tokens.size(), " of ",
                      choice.ending.num_tokens, " tokens)")
                : std::string(" one that was never accepted");
  }
  return text;
}

}  // namespace moebius::simulation
