#include "kernels/sample.h"

#include <algorithm>

#include "kernels/cpu/vocabulary_scan.h"

namespace moebius {

void SampleOne(absl::Span<float> logits, const SampleRow& wanted,
               Sampler& sampler) {
  SampledRow& result = *wanted.result;
  if (wanted.logits != nullptr) {
    std::copy(logits.begin(), logits.end(), wanted.logits);
  }
  result.finite = AllFinite(logits);
  const SamplingParams& sampling = *wanted.sampling;
  if (wanted.known >= 0) {
    result.value.token = wanted.known;
    result.value.logprobs =
        ComputeLogprobs(logits, wanted.known, sampling.num_prompt_logprobs);
    return;
  }
  result.value = sampler.Sample(logits, sampling, wanted.history,
                                wanted.output.size(), wanted.output);
}

}  // namespace moebius
