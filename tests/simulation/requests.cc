#include "tests/simulation/requests.h"

#include <algorithm>

#include "common/base/check.h"
#include "common/step/sequence_check.h"
#include "coordinator/engine/generation_output.h"
#include "tests/simulation/cluster.h"
#include "tests/simulation/rng.h"
#include "tests/simulation/tiny_model.h"

namespace moebius::simulation {
namespace {

constexpr int kMostTokens = 24;

// Leaves a few tokens of the vocabulary, and of their pairs not all: what may
// come depends on what was drawn before.
void Forbid(Rng& rng, int vocab_size, SamplingParams& sampling) {
  constexpr int kAllowed = 8;
  const int step = vocab_size / kAllowed;
  for (int i = 0; i < kAllowed; ++i) {
    sampling.allowed_ids.push_back(i * step + rng.Int(0, step - 1));
  }
  const auto one_of = [&] {
    return sampling.allowed_ids[static_cast<size_t>(rng.Int(0, kAllowed - 1))];
  };
  sampling.bad_words.push_back({one_of()});
  for (int i = rng.Int(1, 24); i > 0; --i) {
    sampling.bad_words.push_back({one_of(), one_of()});
    if (rng.Chance(0.5)) sampling.bad_words.back().push_back(one_of());
  }
}

Ask MakeAsk(Rng& rng, int vocab_size) {
  Ask ask;
  const int length = rng.Chance(0.3) ? rng.Int(17, 40) : rng.Int(1, 20);
  for (int i = 0; i < length; ++i) {
    ask.prompt.push_back(rng.Int(0, vocab_size - 1));
  }
  ask.max_tokens = std::min(kMostTokens, kMaxModelLen - 1 - length);
  SamplingParams& sampling = ask.sampling;
  sampling.seed = rng.Next();
  sampling.temperature =
      rng.Chance(0.4) ? 0.0f : static_cast<float>(rng.Uniform(0.2, 1.5));
  if (rng.Chance(0.3)) sampling.top_k = rng.Int(1, 40);
  if (rng.Chance(0.3)) {
    sampling.top_p = static_cast<float>(rng.Uniform(0.3, 1));
  }
  if (rng.Chance(0.2)) {
    sampling.repetition_penalty = static_cast<float>(rng.Uniform(1, 1.5));
    sampling.presence_penalty = static_cast<float>(rng.Uniform(0, 1));
    sampling.frequency_penalty = static_cast<float>(rng.Uniform(0, 1));
  }
  if (rng.Chance(0.2)) Forbid(rng, vocab_size, sampling);
  // Log-probabilities tell apart what tokens alone would not.
  sampling.num_logprobs = rng.Chance(0.9) ? rng.Int(0, 3) : -1;
  if (rng.Chance(0.25)) sampling.num_prompt_logprobs = rng.Int(0, 2);
  return ask;
}

std::vector<Ask> MakeAsks(int model) {
  Rng rng(static_cast<uint64_t>(model) + 77);
  std::vector<Ask> asks;
  for (int i = 0; i < kNumAsks; ++i) {
    asks.push_back(MakeAsk(rng, ModelOf(model).config().vocab_size));
  }
  return asks;
}

std::vector<Answer> FindAnswers(int model) {
  std::vector<Answer> answers;
  for (const Front::Choice& choice : PlayQuietly(model)) {
    answers.push_back({choice.tokens, choice.prompt_logprobs});
  }
  return answers;
}

// Some letters of what the answer's first tokens say.
std::string SomeWord(Rng& rng, int max_tokens, const Answer& answer) {
  StopCriteria all;
  all.max_tokens = max_tokens;
  const std::string text = EndingOf(all, answer).text;
  const int begin = rng.Int(0, static_cast<int>(text.size()) - 1);
  return text.substr(static_cast<size_t>(begin),
                     static_cast<size_t>(rng.Int(1, 3)));
}

}  // namespace

Wish MakeWish(Rng& rng, int ask, int max_tokens, const Answer& answer) {
  Wish wish;
  wish.ask = ask;
  StopCriteria& stop = wish.stop;
  stop.max_tokens = max_tokens;
  if (rng.Chance(0.5)) return wish;
  const int32_t token =
      answer.tokens[static_cast<size_t>(rng.Int(0, max_tokens - 1))].token;
  switch (rng.Int(0, 3)) {
    case 0:
      stop.eos_ids = {token};
      stop.ignore_eos = rng.Chance(0.2);
      break;
    case 1:
      stop.stop_token_ids = {token};
      break;
    default:
      stop.stop = {SomeWord(rng, max_tokens, answer)};
  }
  stop.include_stop_str_in_output = rng.Chance(0.3);
  if (rng.Chance(0.2)) stop.min_tokens = rng.Int(1, max_tokens);
  return wish;
}

Ending EndingOf(const StopCriteria& stop, const Answer& answer) {
  GenerationOutput generation(&ByteTokenizer(), stop);
  Output output;
  generation.Add(answer.tokens, output);
  CHECK(output.finish.has_value());
  return {output.tokens.size(), *output.finish, output.stop_reason,
          output.text};
}

std::vector<int32_t> RefusedPrompt(int model, const Ask& ask) {
  std::vector<int32_t> prompt = ask.prompt;
  prompt.back() = ModelOf(model).config().vocab_size;
  return prompt;
}

Ending EndingOfRefused(int model, const Ask& ask) {
  const absl::Status why =
      CheckSequence(RefusedPrompt(model, ask), ask.sampling,
                    ModelOf(model).config().vocab_size);
  return {0, FinishReason::kError, std::string(why.message()), ""};
}

const std::vector<Ask>& AsksOf(int model) {
  static const std::vector<Ask> asks[kNumModels] = {MakeAsks(0), MakeAsks(1)};
  CHECK(model >= 0 && model < kNumModels);
  return asks[model];
}

const std::vector<Answer>& AnswersOf(int model) {
  static std::vector<Answer> answers[kNumModels];
  CHECK(model >= 0 && model < kNumModels);
  if (answers[model].empty()) answers[model] = FindAnswers(model);
  return answers[model];
}

}  // namespace moebius::simulation
