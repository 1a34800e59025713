// What is asked of a group, and what the answers must be.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "coordinator/engine/engine.h"
#include "tests/simulation/rng.h"

namespace moebius::simulation {

// A generation that seeds choose from. Whatever surrounds it, and whatever its
// length, its tokens are the first of `tokens`.
struct Ask {
  std::vector<int32_t> prompt;
  SamplingParams sampling;
  int max_tokens = 0;  // a seed may ask for fewer
};
struct Answer {
  std::vector<SampledToken> tokens;  // slot: 0
  std::vector<PromptLogprob> prompt_logprobs;
};

inline constexpr int kNumAsks = 96;

// One choice of a client's request: an ask, and what may end it.
struct Wish {
  int ask = 0;
  StopCriteria stop;
  bool refused = false;  // its prompt ends with a token that no model has
};
// Up to max_tokens tokens; now and then something ends it that its answer has.
Wish MakeWish(Rng& rng, int ask, int max_tokens, const Answer& answer);

// What the client of a wish gets.
struct Ending {
  size_t num_tokens = 0;
  FinishReason finish = FinishReason::kLength;
  std::string stop_reason;
  std::string text;
};
Ending EndingOf(const StopCriteria& stop, const Answer& answer);

// The prompt of a wish that is refused, and how it ends.
std::vector<int32_t> RefusedPrompt(int model, const Ask& ask);
Ending EndingOfRefused(int model, const Ask& ask);

// The asks to a model, the same in every run.
const std::vector<Ask>& AsksOf(int model);

// Their answers by a quiet group: no fault, no switch, nobody hurries. Found at
// the first call.
const std::vector<Answer>& AnswersOf(int model);

}  // namespace moebius::simulation
