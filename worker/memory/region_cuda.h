// Memory of a GPU as regions.
#pragma once

#include <memory>

#include "absl/status/status.h"
#include "worker/memory/region_maker.h"

namespace moebius {

// Regions in memory of that GPU (RegionClass::kDevice): allocations of the
// driver's virtual memory interface, exported as descriptors.
//
// To others such a descriptor is a character device without size or seals, so
// a peer gets a duplicate, and maps it read-only itself; a write through that
// mapping faults in the writer ("illegal memory access") and leaves the memory
// as it is. Memory of another GPU can be mapped where the two reach each other.
// A process that has no driver can keep a descriptor, and with it the memory.
//
// Regions are zero when new. Before one is destroyed or replaced all work of
// this process that uses it must be done: whoever owns streams waits for them.
// RegionOptions have no meaning here.
//
// Every call, and a region's destructor, chooses this GPU for the calling
// thread (UseGpu). The driver is asked for when first needed; without one, or
// without that GPU, calls are kNotFound.
//
// Where a system does not allow descriptors (CheckGpuRegions says so), see
// region_ipc_cuda.h.
std::unique_ptr<RegionMaker> MakeGpuRegionMaker(int gpu);

// Whether regions of that GPU can be made, exported and mapped again: tries it
// with the smallest one. Errors say what does not work.
absl::Status CheckGpuRegions(int gpu);

}  // namespace moebius
