// What the rows of a pass give a host, as a GPU writes it.
#pragma once

#include <cstdint>

#include "common/step/sampling_params.h"
#include "kernels/sampling.h"

namespace moebius {

// Passes whose numbers and results the host has at the same time.
inline constexpr int kPassCopies = 4;

// In memory of the host.
struct GpuSampledRow {
  int32_t token = -1;  // -1: nobody has sampled the row
  int32_t finite = 0;
  float logprob = 0.0f;
  int32_t rank = 0;
  int32_t num_top = 0;
  TokenLogprobValue top[kMaxLogprobs];
};

}  // namespace moebius
