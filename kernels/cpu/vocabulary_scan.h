// Passes over the logits of a vocabulary, vectorised; the parts of sampling.h
// that take time. NaN counts as -infinity everywhere. Sums are in double and
// in an order fixed by the length.
#pragma once

#include <cstddef>
#include <cstdint>

#include "absl/types/span.h"

namespace moebius {

struct HighestLogit {
  int32_t index = 0;  // lowest of equals; 0 when all are -infinity
  float value = 0.0f;
};
HighestLogit FindHighest(absl::Span<const float> logits);

// weights[i] = exp((logits[i] - shift) * factor), 0 where that is below
// `least` (and for NaN). Sums of chunks of kWeightChunk weights go to
// `chunk_sums`; returns their sum.
// REQUIRES: shift is finite.
inline constexpr size_t kWeightChunk = 256;
double ExpWeights(absl::Span<const float> logits, float shift, float factor,
                  float least, float* weights, double* chunk_sums);

// Sum of exp(logits[i] - shift).
double SumExp(absl::Span<const float> logits, float shift);

// Sum of the weights that are at least `least`.
double SumAtLeast(absl::Span<const float> weights, float least);

// Whether no value is NaN or infinite.
bool AllFinite(absl::Span<const float> values);

// Number of values above `value`.
int32_t CountAbove(absl::Span<const float> values, float value);

// Writes the indices of values >= least, ascending; returns how many.
// `indices` has room for values.size() + kScanSlack.
inline constexpr size_t kScanSlack = 16;
size_t CollectAtLeast(absl::Span<const float> values, float least,
                      int32_t* indices);

// The k-th highest value (-infinity when fewer are above that). `scratch` has
// room for max(2k, 1024) + kScanSlack values.
// REQUIRES: 1 <= k <= values.size().
float KthHighest(absl::Span<const float> values, size_t k, float* scratch);

}  // namespace moebius
