// How one sequence draws its tokens. Plain value; travels in step plans.
#pragma once

#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

namespace moebius {

inline constexpr int kMaxLogprobs = 20;
inline constexpr int kMaxLogitBias = 1024;
inline constexpr int kMaxAllowedIds = 4096;
inline constexpr int kMaxBadWords = 128;
inline constexpr int kMaxBadWordIds = 2048;  // of all of them

struct SamplingParams {
  float temperature = 1.0f;  // 0: greedy
  int top_k = 0;             // 0: off
  float top_p = 1.0f;
  float min_p = 0.0f;
  float repetition_penalty = 1.0f;  // over prompt and output
  float presence_penalty = 0.0f;    // over output
  float frequency_penalty = 0.0f;   // over output
  uint64_t seed = 0;
  int num_logprobs = -1;         // -1: none; 0: the sampled token's alone
  int num_prompt_logprobs = -1;  // the same for the tokens of the prompt
  int min_tokens = 0;            // suppressed_ids cannot be drawn before
  std::vector<int32_t> suppressed_ids;
  std::vector<std::pair<int32_t, float>> logit_bias;
  std::vector<int32_t> allowed_ids;  // ascending; empty: all
  // The last token of each cannot be drawn where the output so far ends with
  // the ones before it. None is empty.
  std::vector<std::vector<int32_t>> bad_words;
  friend bool operator==(const SamplingParams&,
                         const SamplingParams&) = default;
};

// Numbers in its lists.
inline size_t ListedNumbers(const SamplingParams& sampling) {
  size_t count = sampling.suppressed_ids.size() +
                 2 * sampling.logit_bias.size() + sampling.allowed_ids.size();
  for (const auto& word : sampling.bad_words) count += 1 + word.size();
  return count;
}

}  // namespace moebius
