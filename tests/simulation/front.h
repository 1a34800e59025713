// The front of a simulated group: submits, aborts, and checks what comes back.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "coordinator/engine.h"
#include "coordinator/journal/journal_state.h"
#include "tests/simulation/options.h"
#include "tests/simulation/requests.h"
#include "tests/simulation/rng.h"
#include "tests/simulation/world.h"

namespace moebius::simulation {

// Front
//
//   A  what was accepted ends well, unless its client gave up
//   B  tokens come in order, each once
//   O  they are those of a quiet group, to the last bit
class Front {
 public:
  struct Request {
    int ask = 0;
    int max_tokens = 0;
    int64_t abort_at_us = -1;
    RequestId id;
    // Submitted to this life of the coordinator, or to an earlier one and
    // taken up again; `accepted`: it has said so.
    bool submitted = false;
    bool accepted = false, aborted = false, finished = false;
    // Until Attach has answered, the listener's outputs are not for us.
    bool attaching = false;
    std::vector<SampledToken> tokens;
    std::vector<PromptLogprob> prompt_logprobs;
    int64_t accepted_us = 0, first_us = -1, finished_us = -1;
  };

  // `answers`: null when these are to be found.
  Front(World* world, const std::vector<Ask>* asks,
        const std::vector<Answer>* answers)
      : world_(world), asks_(asks), answers_(answers) {}

  // With each life of the coordinator, and its journal; null: there is none.
  // Clients come back to it with what it knows.
  void SetEngine(Engine* engine, const JournalState* journal);

  // Tokens may be said that no journal has: after the death of its coordinator
  // a client may hear them again.
  void AllowRepetition() { repetition_allowed_ = true; }

  // Submits at that time, and again until it is accepted.
  void SubmitAt(int64_t time_us, int ask, int max_tokens,
                int64_t abort_after_us);
  void Hear(std::vector<Output> outputs);
  // Nobody aborts any more.
  void StopAborts() { aborts_stopped_ = true; }

  bool all_done() const;
  const std::vector<Request>& requests() const { return requests_; }
  // When the latest token came, -1 before the first.
  int64_t last_token_us() const { return last_token_us_; }
  // What has not ended.
  std::string Unfinished() const;

 private:
  void Submit(size_t index);
  void Abort(size_t index);
  void Take(size_t index, const Output& output);
  void TakeTokens(Request& request, const Output& output);
  void Resubmit(size_t index);
  void Attach(size_t index);

  World* const world_;
  const std::vector<Ask>* const asks_;
  const std::vector<Answer>* const answers_;
  Engine* engine_ = nullptr;
  std::vector<Request> requests_;
  std::map<uint64_t, size_t> by_id_;
  int64_t last_token_us_ = -1;
  bool aborts_stopped_ = false;
  bool repetition_allowed_ = false;
};

}  // namespace moebius::simulation
