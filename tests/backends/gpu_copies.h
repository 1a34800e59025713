// What tests read of a GPU's memory.
#pragma once

#include <cstdint>

#include "kernels/cuda/gpu.h"

namespace moebius {

// Copies to the host behind what the stream has to do, and waits. Ends the
// program on an error.
void DownloadFromGpu(const GpuStream& stream, const void* from,
                     int64_t size_bytes, void* to);

}  // namespace moebius
