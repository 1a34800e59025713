#include "deploy/bench/gpu_share.h"

#include <algorithm>
#include <vector>

#include "common/layout/blocks.h"

namespace moebius {

double WeightShareBetweenGpus(const GpuPlacement& placement, Layout from,
                              Layout to) {
  const int n = placement.num_ranks;
  std::vector<int> taken(static_cast<size_t>(placement.num_gpus()));
  for (int owner = 0; owner < n; ++owner) {
    for (int slice = 0; slice < n; ++slice) {
      const int source = placement.gpu_of(HolderOf(from, n, {owner, slice}));
      const int target = placement.gpu_of(HolderOf(to, n, {owner, slice}));
      if (source != target) ++taken[static_cast<size_t>(target)];
    }
  }
  return static_cast<double>(*std::max_element(taken.begin(), taken.end())) /
         (static_cast<double>(n) * n);
}

double KvShareBetweenGpus(const GpuPlacement& placement) {
  const int n = placement.num_ranks;
  if (n == 1) return 0;
  const double far = n - placement.ranks_per_gpu;
  return std::max(0.0, far) / (n - 1) / placement.num_gpus();
}

}  // namespace moebius
