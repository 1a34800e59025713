#include "common/step/sequence_check.h"

#include <cmath>

#include "absl/strings/str_cat.h"
#include "common/base/status_macros.h"

namespace moebius {
namespace {

absl::Status CheckSampling(const SamplingParams& sampling) {
  for (const float value :
       {sampling.temperature, sampling.top_p, sampling.min_p,
        sampling.repetition_penalty, sampling.presence_penalty,
        sampling.frequency_penalty}) {
    if (!std::isfinite(value)) {
      return absl::InvalidArgumentError(
          "a sampling parameter is not a finite number");
    }
  }
  for (const int count :
       {sampling.num_logprobs, sampling.num_prompt_logprobs}) {
    if (count > kMaxLogprobs) {
      return absl::InvalidArgumentError(absl::StrCat(
          count, " log-probabilities of a token; allowed: at most ",
          kMaxLogprobs));
    }
  }
  if (sampling.logit_bias.size() > static_cast<size_t>(kMaxLogitBias)) {
    return absl::InvalidArgumentError(
        absl::StrCat("a logit bias for ", sampling.logit_bias.size(),
                     " tokens; allowed: at most ", kMaxLogitBias));
  }
  size_t bad_ids = 0;
  for (const auto& word : sampling.bad_words) {
    if (word.empty()) return absl::InvalidArgumentError("an empty bad word");
    bad_ids += word.size();
  }
  if (sampling.allowed_ids.size() > static_cast<size_t>(kMaxAllowedIds) ||
      sampling.bad_words.size() > static_cast<size_t>(kMaxBadWords) ||
      bad_ids > static_cast<size_t>(kMaxBadWordIds)) {
    return absl::InvalidArgumentError(
        absl::StrCat(sampling.allowed_ids.size(), " allowed ids and ",
                     sampling.bad_words.size(), " bad words of ", bad_ids,
                     " tokens; allowed: at most ", kMaxAllowedIds, ", and ",
                     kMaxBadWords, " of ", kMaxBadWordIds));
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status CheckSequence(absl::Span<const int32_t> tokens,
                           const SamplingParams& sampling, int32_t vocab_size) {
  RETURN_IF_ERROR(CheckSampling(sampling));
  if (vocab_size == 0) return absl::OkStatus();
  for (size_t i = 0; i < tokens.size(); ++i) {
    if (tokens[i] >= 0 && tokens[i] < vocab_size) continue;
    return absl::InvalidArgumentError(
        absl::StrCat("token ", tokens[i], " at position ", i,
                     "; the model has the ids 0 to ", vocab_size - 1));
  }
  return absl::OkStatus();
}

}  // namespace moebius
