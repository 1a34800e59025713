// What a step has given, as plain values.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "common/base/ids.h"

namespace moebius {

struct TokenLogprob {
  int32_t token = 0;
  float logprob = 0.0f;
  friend bool operator==(const TokenLogprob&, const TokenLogprob&) = default;
};

struct SampledToken {
  uint32_t slot = 0;
  uint32_t position = 0;  // of the token in the sequence
  int32_t token = 0;
  float logprob = 0.0f;           // when asked for
  std::vector<TokenLogprob> top;  // descending
  friend bool operator==(const SampledToken&, const SampledToken&) = default;
};

struct PromptLogprob {
  uint32_t slot = 0;
  uint32_t position = 0;  // of the token whose probability it is, from 1
  int32_t token = 0;
  float logprob = 0.0f;
  std::vector<TokenLogprob> top;
  uint32_t rank = 0;  // 1 + number of tokens that are likelier; 0: unknown
  friend bool operator==(const PromptLogprob&, const PromptLogprob&) = default;
};

// The sequence in that slot is one that no worker computes (sequence_check.h).
struct RefusedSequence {
  uint32_t slot = 0;
  std::string reason;
  friend bool operator==(const RefusedSequence&,
                         const RefusedSequence&) = default;
};

// A step is done, on every rank: rank 0 reports for the group. `sampled` holds
// one token for each item with `sample`, in any order; prompt_logprobs are
// ascending by slot, then position. Items of a refused sequence were passed
// over: it has an entry in `refused` instead.
struct StepResult {
  StepId step;
  uint32_t duration_us = 0;
  std::vector<SampledToken> sampled;
  std::vector<PromptLogprob> prompt_logprobs;
  std::vector<RefusedSequence> refused;
  // Rows of logits with a NaN or an infinity among them, and the slot of one.
  uint32_t nonfinite_rows = 0;
  uint32_t nonfinite_slot = 0;
};

}  // namespace moebius
