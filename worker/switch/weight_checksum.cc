#include "worker/switch/weight_checksum.h"

#include <atomic>

#include "common/base/split_mix.h"
#include "kernels/pull.h"

namespace moebius {

uint64_t WeightChecksum(const ExpertShape& shape, Layout layout, Rank rank,
                        const std::byte* experts, ThreadPool* pool) {
  const bool ep = layout.is_ep();
  const int num_experts =
      ep ? shape.num_experts / shape.num_ranks : shape.num_experts;
  const int first_expert = ep ? rank * num_experts : 0;
  const int units_of_matrix = shape.intermediate_rows / shape.unit_rows;
  const int num_units =
      ep ? units_of_matrix : units_of_matrix / shape.num_ranks;
  const int first_unit = ep ? 0 : rank * num_units;
  const int64_t unit_bytes = shape.unit_rows * shape.row_bytes;
  std::atomic<uint64_t> sum{0};
  ParallelFor(pool, shape.num_moe_layers * num_experts, [&](int task) {
    const int layer = task / num_experts;
    const int local = task % num_experts;
    const std::byte* unit = experts +
                            SlotOf(layout, layer) * shape.slot_bytes() +
                            int64_t{local} * 3 * num_units * unit_bytes;
    uint64_t of_expert = 0;
    for (int matrix = 0; matrix < 3; ++matrix) {
      for (int u = 0; u < num_units; ++u, unit += unit_bytes) {
        const int64_t expert =
            int64_t{layer} * shape.num_experts + first_expert + local;
        const uint64_t place =
            (expert * 3 + matrix) * units_of_matrix + first_unit + u;
        const absl::Span<const std::byte> bytes(unit, unit_bytes);
        of_expert += SplitMix(Checksum(bytes, nullptr) + SplitMix(place + 1));
      }
    }
    sum.fetch_add(of_expert, std::memory_order_relaxed);
  });
  return sum.load();
}

}  // namespace moebius
