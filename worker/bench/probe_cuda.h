// DeviceProbe for a GPU.
#pragma once

#include <memory>

#include "absl/status/statusor.h"
#include "worker/bench/device_probe.h"
#include "worker/model/decoder.h"

namespace moebius {

// Events stand between the operators of a watched pass. The stream waits at its
// begin until the host has launched all of it, so that it waits for no launch;
// kernels that would begin early (launch.cuh) do not where an event stands
// before them. The decoder outlives it.
template <Numerics N>
absl::StatusOr<std::unique_ptr<DeviceProbe>> MakeGpuProbe(
    const Cuda<N>& device, int gpu, Decoder<Cuda<N>>* decoder);

// Of the GPU, whatever else is on it. Takes 2 GiB of it meanwhile.
absl::StatusOr<CopyRates> MeasureGpuCopies(int gpu);

}  // namespace moebius
