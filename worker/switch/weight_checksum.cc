#include "worker/switch/weight_checksum.h"

#include "common/base/split_mix.h"
#include "kernels/checksum.h"

namespace moebius {
namespace {

bool IsSet(const std::atomic<bool>* stop) {
  return stop != nullptr && stop->load(std::memory_order_relaxed);
}

// Of the local expert of a layer that lies in `slot`.
uint64_t ExpertChecksum(const ExpertShape& shape, Layout layout,
                        const SlotView& view, int moe_layer, int local,
                        const std::byte* slot, const std::atomic<bool>* stop) {
  const int units_of_piece = shape.rows_per_block() / shape.unit_rows;
  const int units_of_matrix = shape.padded_rows() / shape.unit_rows;
  const int64_t unit_bytes = shape.unit_rows * shape.row_bytes;
  const int64_t expert =
      int64_t{moe_layer} * shape.padded_experts() + view.first_expert + local;
  uint64_t sum = 0;
  for (int p = 0; p < view.num_pieces; ++p) {
    const std::byte* unit =
        slot + PieceOffset(shape, layout, local) + p * shape.block_bytes();
    const int first_unit =
        view.first_row / shape.unit_rows + p * units_of_piece;
    for (int matrix = 0; matrix < 3; ++matrix) {
      for (int u = 0; u < units_of_piece; ++u, unit += unit_bytes) {
        if (IsSet(stop)) return 0;
        const uint64_t place =
            (expert * 3 + matrix) * units_of_matrix + first_unit + u;
        const absl::Span<const std::byte> bytes(unit, unit_bytes);
        sum += SplitMix(Checksum(Cpu{}, bytes) + SplitMix(place + 1));
      }
    }
  }
  return sum;
}

}  // namespace

uint64_t WeightChecksum(const ExpertShape& shape, const ExpertsState& state,
                        Rank rank, const std::byte* experts, ThreadPool* pool) {
  // Layers may be in two layouts; TP has the most experts in a slot.
  const int most = shape.padded_experts();
  std::atomic<uint64_t> sum{0};
  ParallelFor(pool, shape.num_moe_layers * most, [&](int task) {
    const int layer = task / most, local = task % most;
    const Layout layout = state.LayoutOf(shape, layer);
    const SlotView view = ViewOf(shape, layout, rank);
    if (local >= view.num_experts) return;
    const std::byte* const slot =
        experts + state.SlotOf(shape, layer) * shape.slot_bytes();
    sum.fetch_add(
        ExpertChecksum(shape, layout, view, layer, local, slot, nullptr),
        std::memory_order_relaxed);
  });
  return sum.load();
}

uint64_t LayerChecksum(const ExpertShape& shape, const ExpertsState& state,
                       Rank rank, const std::byte* experts, int moe_layer,
                       const std::atomic<bool>* stop) {
  const Layout layout = state.LayoutOf(shape, moe_layer);
  const SlotView view = ViewOf(shape, layout, rank);
  const std::byte* const slot =
      experts + state.SlotOf(shape, moe_layer) * shape.slot_bytes();
  uint64_t sum = 0;
  for (int local = 0; local < view.num_experts; ++local) {
    sum += ExpertChecksum(shape, layout, view, moe_layer, local, slot, stop);
  }
  return sum;
}

}  // namespace moebius
