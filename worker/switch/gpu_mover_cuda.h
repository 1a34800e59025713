// The mover of a GPU: its copy engines, and kernels.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "absl/status/statusor.h"
#include "worker/memory/worker_memory.h"
#include "worker/switch/copy_choice.h"
#include "worker/switch/mover.h"

namespace moebius {

struct GpuMoverOptions {
  int gpu = 0;             // of this process
  int64_t page_bytes = 0;  // of KV pages, a multiple of 16
  // [rank] Where each rank's memory lies: ranks with equal numbers share a GPU.
  // Empty: each has one of its own.
  std::vector<int> gpu_of_rank;
  // Instead of ChooseCopies(), to measure with.
  std::optional<CopyChoice> choice;
};

// A mover over regions in memory of GPUs (region_cuda.h); `memory` outlives it.
//
// A layer: blocks of ranks on other GPUs by copy engines, one after the other
// in ring order (rank r pulls from r + 1, r + 2 ...), so that no two ranks pull
// from one; blocks on this GPU by a kernel beside them. Engines that work for
// several peers at once are slower, 213 against 355 GB/s. Small blocks are the
// kernel's as well, and large ones the driver's where all ranks share the GPU
// (copy_choice.h).
// Layers that are under way together follow one another without a gap.
// A wave: one kernel over all pages, sources in turn.
//
// Begin* only launch, and check segments as well; Poll() looks. The time of a
// move is the device's.
// REQUIRES of Begin*: all work of the GPU on the regions, of steps and checks,
// is done; it would not be waited for.
//
// kInvalidArgument for options that cannot be, kResourceExhausted and
// kInternal from the driver. Moves may end with kInternal: the device is lost.
absl::StatusOr<std::unique_ptr<Mover>> MakeGpuMover(
    const WorkerMemory* memory, const GpuMoverOptions& options);

}  // namespace moebius
