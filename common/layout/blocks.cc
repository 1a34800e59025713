#include "common/layout/blocks.h"

#include "absl/strings/str_cat.h"
#include "common/base/check.h"
#include "common/base/status_macros.h"

namespace moebius {
namespace {

// Appends a segment, joined to the last one when both ends continue it.
void Append(CopySegment segment, std::vector<CopySegment>& segments) {
  if (!segments.empty()) {
    CopySegment& last = segments.back();
    if (last.src_rank == segment.src_rank &&
        last.src_offset + last.size_bytes == segment.src_offset &&
        last.dst_offset + last.size_bytes == segment.dst_offset) {
      last.size_bytes += segment.size_bytes;
      return;
    }
  }
  segments.push_back(segment);
}

}  // namespace

absl::Status Validate(const ExpertShape& shape) {
  RETURN_IF_ERROR(ValidateNumRanks(shape.num_ranks));
  if (shape.num_moe_layers < 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("the number of MoE layers is ", shape.num_moe_layers));
  }
  if (shape.num_moe_layers == 0) return absl::OkStatus();  // a dense model
  if (shape.spare_slots < 1 || shape.spare_slots > kMaxSpareSlots) {
    return absl::InvalidArgumentError(absl::StrCat(
        shape.spare_slots, " spare slots; allowed: 1 to ", kMaxSpareSlots));
  }
  constexpr int kMaxDimension = 1 << 24;
  if (shape.num_experts < 1 || shape.intermediate_rows < 1 ||
      shape.unit_rows < 1 || shape.row_bytes < 1 ||
      shape.num_experts > kMaxDimension ||
      shape.intermediate_rows > kMaxDimension ||
      shape.unit_rows > kMaxDimension) {
    return absl::InvalidArgumentError(
        absl::StrCat("an expert shape must be positive and no side above ",
                     kMaxDimension, ": ", shape.num_experts, " experts of ",
                     shape.intermediate_rows, " rows in units of ",
                     shape.unit_rows, ", ", shape.row_bytes, " bytes a row"));
  }
  // The group's bytes, and every offset with them, must fit an int64.
  int64_t bytes = 3;
  for (const int64_t factor :
       {int64_t{shape.padded_experts()}, int64_t{shape.padded_rows()},
        shape.row_bytes, int64_t{shape.num_moe_layers} + shape.spare_slots,
        int64_t{2}}) {
    if (__builtin_mul_overflow(bytes, factor, &bytes)) {
      return absl::InvalidArgumentError(
          "the experts are larger than 2^62 bytes");
    }
  }
  return absl::OkStatus();
}

Rank HolderOf(Layout layout, int num_ranks, Block block) {
  const int slices = num_ranks / layout.tp_size;  // of a part
  return layout.first_rank(block.owner / layout.tp_size) + block.slice / slices;
}

int IndexOf(Layout layout, int num_ranks, Block block) {
  const int slices = num_ranks / layout.tp_size;
  return block.owner % layout.tp_size * slices + block.slice % slices;
}

Block BlockAt(Layout layout, int num_ranks, Rank rank, int index) {
  const int slices = num_ranks / layout.tp_size;
  return {layout.first_rank(layout.group_of(rank)) + index / slices,
          layout.part_of(rank) * slices + index % slices};
}

SlotView ViewOf(const ExpertShape& shape, Layout layout, Rank rank) {
  CHECK(layout.divides(shape.num_ranks));
  CHECK(rank >= 0 && rank < shape.num_ranks);
  SlotView view;
  view.num_experts = layout.tp_size * shape.experts_per_block();
  view.first_expert = layout.group_of(rank) * view.num_experts;
  view.num_pieces = shape.num_ranks / layout.tp_size;
  view.first_row =
      layout.part_of(rank) * view.num_pieces * shape.rows_per_block();
  return view;
}

int64_t PieceOffset(const ExpertShape& shape, Layout layout, int local_expert) {
  const int owner = local_expert / shape.experts_per_block();
  const int in_block = local_expert % shape.experts_per_block();
  const int slices = shape.num_ranks / layout.tp_size;
  return owner * slices * shape.block_bytes() + in_block * shape.piece_bytes();
}

RankRange RanksOfExpert(const ExpertShape& shape, Layout layout, int expert) {
  const int group = expert / (layout.tp_size * shape.experts_per_block());
  return {layout.first_rank(group), layout.first_rank(group + 1)};
}

std::vector<CopySegment> PlanSlot(const ExpertShape& shape, Layout from,
                                  Layout to, Rank rank) {
  const int n = shape.num_ranks;
  CHECK(from.divides(n) && to.divides(n));
  CHECK(rank >= 0 && rank < n);
  const int64_t bytes = shape.block_bytes();
  std::vector<CopySegment> segments;
  segments.reserve(static_cast<size_t>(n));
  for (int q = 0; q < n; ++q) {
    const Block block = BlockAt(to, n, rank, q);
    Append({.src_rank = HolderOf(from, n, block),
            .src_offset = IndexOf(from, n, block) * bytes,
            .dst_offset = q * bytes,
            .size_bytes = bytes},
           segments);
  }
  return segments;
}

}  // namespace moebius
