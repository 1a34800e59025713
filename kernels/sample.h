// The end of a pass: from rows of logits to tokens and log-probabilities.
#pragma once

#include <cstddef>
#include <cstdint>

#include "absl/types/span.h"
#include "kernels/formats.h"
#include "kernels/sampling.h"

namespace moebius {

// What a row of logits gave.
struct SampledRow {
  SampledValue value;
  bool finite = true;  // no NaN and no infinity among the logits
};

// A token that the host does not know yet, where a pass has one: that which a
// pass before it has drawn to a place (SampleRow::place). -1 is none.
constexpr int32_t TokenAtPlace(int place) { return -2 - place; }
constexpr bool IsAtPlace(int32_t token) { return token <= -2; }
constexpr int PlaceOf(int32_t token) { return -2 - token; }

// What is wanted of one row of logits.
struct SampleRow {
  const SamplingParams* sampling = nullptr;
  const TokenHistory* history = nullptr;  // of the tokens before
  absl::Span<const int32_t> output;       // the generated ones of them
  // A token of the prompt, whose log-probability is wanted; -1: draw one.
  int32_t known = -1;
  // Where a device keeps the drawn token for later passes; -1: nowhere.
  int place = -1;
  float* logits = nullptr;  // [vocabulary] gets them as they are; null: nobody
  SampledRow* result = nullptr;
};

// Draws, or looks up, what is wanted of a row of logits in memory of the host.
// Changes them.
void SampleOne(absl::Span<float> logits, const SampleRow& wanted,
               Sampler& sampler);

// What is wanted of the rows of a pass, by row.
template <class D>
struct Samples;

template <>
struct Samples<Cpu> {
  const SampleRow* first = nullptr;
  ptrdiff_t step = 1;  // to the next one
  int count = 0;
  // Of row `begin`, and every `every` rows on; of no rows wherever it is.
  Samples Each(int begin, int every, int rows) const {
    return {rows > 0 ? first + begin * step : first, step * every, rows};
  }
};

// Draws, or looks up, what is wanted of each row of `logits`, which it changes.
// REQUIRES: logits.rows == samples.count.
void Sample(const Cpu& device, Rows logits, const Samples<Cpu>& samples);

}  // namespace moebius
