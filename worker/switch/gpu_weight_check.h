// A WeightCheck on a GPU, beside the steps.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

#include "absl/status/statusor.h"
#include "common/layout/experts_state.h"
#include "kernels/cuda/failure.h"
#include "worker/switch/weight_check.h"

namespace moebius {

struct GpuWeightCheckOptions {
  int gpu = 0;
  ExpertShape shape;
  Rank rank = 0;
  // Base of the experts region, in memory of the GPU; outlives the check.
  const std::byte* experts = nullptr;
  // Where errors of the GPU are noted; outlives the check. After one no sum
  // comes.
  CudaFailure* failure = nullptr;
};

// The whole check is launched at once, a layer a kernel, on a stream of the
// lowest priority and on a quarter of the multiprocessors: steps go first. It
// is given up within a unit of rows.
// kInvalidArgument when rows of a unit are no whole words of 64 bits, and the
// errors of the driver.
absl::StatusOr<std::unique_ptr<WeightCheck>> MakeGpuWeightCheck(
    const GpuWeightCheckOptions& options);

// WeightChecksum() now, by the whole GPU; waits for it. Errors as above.
absl::StatusOr<uint64_t> GpuWeightChecksum(const GpuWeightCheckOptions& options,
                                           const ExpertsState& state);

}  // namespace moebius
