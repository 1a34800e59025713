#include <algorithm>
#include <utility>

#include "common/base/check.h"
#include "kernels/cpu/vocabulary_scan.h"
#include "kernels/sample.h"

namespace moebius {
namespace {

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

}  // namespace

void Sample(const Cpu& device, Rows logits, const Samples<Cpu>& samples) {
  CHECK(logits.rows == samples.count);
  ParallelFor(device.pool, logits.rows, [&](int i) {
    thread_local Sampler sampler;
    SampleOne(absl::MakeSpan(logits.row(i), static_cast<size_t>(logits.cols)),
              samples.first[i * samples.step], sampler);
  });
}

}  // namespace moebius
