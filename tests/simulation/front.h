// The front of a simulated group: submits, aborts, and checks what comes back.
#pragma once

#include <cstdint>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "absl/types/span.h"
#include "coordinator/engine/engine.h"
#include "coordinator/journal/journal_state.h"
#include "tests/simulation/options.h"
#include "tests/simulation/requests.h"
#include "tests/simulation/rng.h"
#include "tests/simulation/world.h"

namespace moebius::simulation {

// Front
//
//   A  what was accepted ends well, unless its client gave up; with an error if
//      no worker computes it; of a request's choices all are accepted or none;
//      an end is in the journal before a client hears of it
//   B  tokens come in order, each once
//   O  they, what they say and what ends them are those of a quiet group, to
//      the last bit
class Front {
 public:
  struct Choice {
    size_t call = 0;
    Wish wish;
    Ending ending;  // what must be heard; unless answers are to be found
    RequestId id;
    bool accepted = false, refused = false, aborted = false, finished = false;
    // Until Attach has answered, the listener's outputs are not for us.
    bool attaching = false;
    std::vector<SampledToken> tokens;
    std::string text;
    std::vector<PromptLogprob> prompt_logprobs;
    int64_t first_us = -1;
    bool over() const { return finished || aborted; }
  };

  // `answers`: null when these are to be found.
  Front(World* world, int model, const std::vector<Answer>* answers)
      : world_(world),
        model_(model),
        asks_(&AsksOf(model)),
        answers_(answers) {}

  // With each coordinator, and its journal; null: there is none. `again`:
  // clients come back to it with what it knows.
  void SetEngine(Engine* engine, const JournalState* journal, bool again);

  // Tokens may be said that no journal has: after the death of its coordinator
  // a client may hear them again.
  void AllowRepetition() { repetition_allowed_ = true; }

  // Submits a request of these choices at that time, and again until it is
  // accepted. Its client goes away so long after (-1: it stays).
  void SubmitAt(int64_t time_us, std::vector<Wish> wishes,
                int64_t abort_after_us);
  void Hear(std::vector<Output> outputs);
  // Nobody aborts any more.
  void StopAborts() { aborts_stopped_ = true; }

  bool all_done() const;
  const std::vector<Choice>& choices() const { return choices_; }
  // When the latest token came, -1 before the first.
  int64_t last_token_us() const { return last_token_us_; }
  // What has not ended.
  std::string Unfinished() const;

 private:
  // A client's request: choices_[first] and those after it.
  struct Call {
    size_t first = 0, size = 0;
    int64_t abort_after_us = -1;
    // To this coordinator, or to an earlier one and taken up again.
    bool submitted = false;
  };

  void Submit(size_t call);
  void Abort(size_t call);
  void Take(Choice& choice, const Output& output);
  void TakeTokens(Choice& choice, const Output& output);
  void TakeEnd(Choice& choice, const Output& output);
  void OnRefused(Choice& choice);
  void Resubmit(size_t call);
  void ComeBack(size_t call, const RequestId* first);
  void Attach(size_t call);
  absl::Span<Choice> ChoicesOf(size_t call) {
    return absl::MakeSpan(choices_).subspan(calls_[call].first,
                                            calls_[call].size);
  }

  World* const world_;
  const int model_;
  const std::vector<Ask>* const asks_;
  const std::vector<Answer>* const answers_;
  Engine* engine_ = nullptr;
  const JournalState* journal_ = nullptr;  // of the engine
  std::vector<Call> calls_;
  std::vector<Choice> choices_;
  std::map<uint64_t, size_t> by_id_;  // index among choices_
  // Were refused since they could not be written; yet what was tried may be on
  // the disk. A later coordinator that finds them there serves them to nobody.
  std::set<uint64_t> refused_;
  int64_t last_token_us_ = -1;
  bool aborts_stopped_ = false;
  bool repetition_allowed_ = false;
};

}  // namespace moebius::simulation
