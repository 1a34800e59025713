// Memory of a GPU as regions, where its driver exports no descriptors.
#pragma once

#include <memory>

#include "absl/status/status.h"
#include "worker/memory/region_maker.h"

namespace moebius {

// Regions of RegionClass::kHandle: plain allocations, shown to other processes
// by the older interface of the driver (cudaIpcMemHandle_t). The descriptor of
// a region is a sealed memfd that holds this handle.
//
// It is the fallback of region_cuda.h, and does less:
// - The memory ends with its owner, so a successor begins with none: weights
//   are read again, and KV is computed again.
// - Peers' mappings can be written, whatever they were mapped for.
// - Where the driver maps a handle is its own business. A region whose memory
//   is replaced has to come to lie where it was; when it does not, Replace() is
//   kFailedPrecondition, and the process has to end. (Driver 580 was seen to
//   map a successor's memory elsewhere.)
// - In the process of its owner a mapping is the region's own address, and must
//   not outlive it.
std::unique_ptr<RegionMaker> MakeIpcRegionMaker(int gpu);

// Whether memory of that GPU can be had and shown in this way: tries it with
// the smallest region. Errors say what does not work.
absl::Status CheckIpcRegions(int gpu);

}  // namespace moebius
