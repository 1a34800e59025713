// How much of a switch goes between GPUs. Pure.
#pragma once

#include "common/layout/layout.h"

namespace moebius {

struct GpuPlacement {
  int num_ranks = 1;
  int ranks_per_gpu = 1;  // they fill one GPU after the other

  constexpr int num_gpus() const {
    return (num_ranks + ranks_per_gpu - 1) / ranks_per_gpu;
  }
  constexpr int gpu_of(int rank) const { return rank / ranks_per_gpu; }
};

// Of all bytes of experts that a switch copies, the share that comes to the GPU
// that takes most from others. REQUIRES: both layouts divide the ranks.
double WeightShareBetweenGpus(const GpuPlacement& placement, Layout from,
                              Layout to);

// Of all bytes of KV that a switch moves from rank to rank, the share that
// comes to a GPU from others, as if each rank sent as much to every other. 0
// for a group of one.
double KvShareBetweenGpus(const GpuPlacement& placement);

}  // namespace moebius
