// What a worker computes of a sequence, and what it refuses. The coordinator
// asks before it accepts a request. A worker asks again, so that nothing that a
// request brings can end it; every rank sees the same sequence, and so refuses
// the same.
#pragma once

#include <cstdint>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "common/step/sampling_params.h"

namespace moebius {

// OK, or kInvalidArgument with what is wrong: a token that the model does not
// have, parameters that are no numbers or beyond their bounds.
// `vocab_size` 0: any token.
absl::Status CheckSequence(absl::Span<const int32_t> tokens,
                           const SamplingParams& sampling, int32_t vocab_size);

}  // namespace moebius
