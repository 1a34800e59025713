// From logits to a token: penalties, truncation, the draw, log-probabilities.
//
// Order and meaning as in vLLM (V1 sampler): log-probabilities come from the
// raw logits; then allowed ids, bad words, suppressed ids (min_tokens),
// logit_bias, repetition, frequency and presence penalties; greedy stops here
// (highest logit, lowest id on ties); else temperature, min-p, top-k, top-p,
// and the draw.
//
//   bad words   the last token of one is out where the output so far, not the
//               prompt, ends with the tokens before it
//   repetition  logit > 0 ? logit / r : logit * r, for tokens of prompt or
//               output
//   frequency   logit -= f * times in output; presence: logit -= p if in output
//   min-p       keeps tokens with probability >= min_p * the highest
//   top-k       keeps logits >= the k-th highest (ties at the edge are kept)
//   top-p       of the renormalised rest, in descending order (ties: lowest id
//               first), keeps the shortest prefix of mass >= top_p
//
// The draw is inverse transform sampling over the kept tokens in order of id,
// with one number from Philox4x32-10 keyed by (seed, token index): it does not
// depend on anything drawn before, so a replay gives the same token.
//
// Hostile logits: NaN counts as -infinity. Infinite logits share the whole
// mass. When nothing is left the lowest id is taken. No input gives an id
// outside the vocabulary. Sums are in double, in a fixed order.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/functional/function_ref.h"
#include "absl/types/span.h"
#include "common/step/sampling_params.h"

namespace moebius {

// Philox4x32-10 (Salmon, Moraes, Dror, Shaw: Parallel random numbers: as easy
// as 1, 2, 3; SC 2011). A pure function of counter and key.
std::array<uint32_t, 4> Philox4x32(std::array<uint32_t, 4> counter,
                                   std::array<uint32_t, 2> key);

// Uniform in [0, 1) with 53 bits, for token `index` of the sequence's output.
double UniformDraw(uint64_t seed, uint64_t token_index);

// How often each token occurred, for the penalties. Only distinct tokens take
// memory or time.
class TokenHistory {
 public:
  struct Entry {
    int32_t token = 0;
    int32_t output_count = 0;  // times generated; 0: in the prompt alone
    bool in_prompt = false;
  };
  void AddPrompt(absl::Span<const int32_t> tokens);
  void AddOutput(int32_t token);
  void Clear();
  absl::Span<const Entry> entries() const { return entries_; }

 private:
  Entry& Find(int32_t token);
  std::vector<Entry> entries_;
  absl::flat_hash_map<int32_t, size_t> index_;
};

// Whether `params` needs a TokenHistory at all.
bool NeedsHistory(const SamplingParams& params);

// Whether the highest logit is taken: at temperature 0, or so near to it that
// no other has a chance.
bool IsGreedy(const SamplingParams& params);

// Calls `out` with each token that cannot be number `token_index` behind
// `output`: the last ones of bad words, and suppressed ids as long as there are
// fewer than min_tokens. Ids may come twice, and may be outside of the
// vocabulary.
void ForEachTokenOut(const SamplingParams& params, uint64_t token_index,
                     absl::Span<const int32_t> output,
                     absl::FunctionRef<void(int32_t)> out);

struct TokenLogprobValue {
  int32_t token = 0;
  float logprob = 0.0f;
  friend bool operator==(const TokenLogprobValue&,
                         const TokenLogprobValue&) = default;
};

struct Logprobs {
  float logprob = 0.0f;  // of the token asked for
  int rank = 0;          // 1 + number of tokens with a higher logit
  std::vector<TokenLogprobValue> top;  // descending, ties lowest id first
};

// log softmax(logits) at `token` and at the `num_top` highest.
// REQUIRES: 0 <= token < logits.size(); num_top <= kMaxLogprobs.
// Values are finite or -infinity, never NaN.
Logprobs ComputeLogprobs(absl::Span<const float> logits, int32_t token,
                         int num_top);

struct SampledValue {
  int32_t token = 0;
  Logprobs logprobs;  // empty (rank 0) when params.num_logprobs < 0
};

// Index of the highest logit, lowest on ties; NaN counts as -infinity.
// REQUIRES: at least one logit.
int32_t Argmax(absl::Span<const float> logits);

// Sampler
//
// Holds scratch memory of the size of a vocabulary. Threading: one a thread.
class Sampler {
 public:
  // Draws token number `token_index` (0 is the first generated one).
  //   logits   [vocabulary]; changed by penalties and the like
  //   history  of the sequence before this token; may be null when
  //            !NeedsHistory(params)
  //   output   the tokens generated before it; without bad words of several
  //            tokens nobody looks at them
  // Ids in params or history outside the vocabulary are ignored. Suppressed
  // ids apply while token_index < params.min_tokens.
  SampledValue Sample(absl::Span<float> logits, const SamplingParams& params,
                      const TokenHistory* history, uint64_t token_index,
                      absl::Span<const int32_t> output = {});

 private:
  int32_t Draw(absl::Span<const float> logits, const SamplingParams& params,
               double uniform);
  int32_t DrawInfinite(absl::Span<const float> logits, double uniform);
  int32_t DrawFromAll(double total, double uniform) const;
  std::vector<float> raw_;          // logits before any change
  std::vector<float> weights_;      // [vocabulary] relative probabilities
  std::vector<double> chunk_sums_;  // of weights_
  std::vector<float> scratch_;
  std::vector<int32_t> candidates_;  // ascending ids
  std::vector<int32_t> order_;
};

}  // namespace moebius
