// Block algebra: which rank holds which bytes of the experts in each layout,
// and which copies turn one layout into another. Pure values and functions.
//
// The experts of a layer are cut into N owners (owner o has the experts o*e ..
// o*e + e - 1) and N slices (slice s has the rows s*i .. s*i + i - 1 of the
// intermediate dimension). Block (o, s) is one contiguous piece of memory:
//
//   [e experts][gate, up, down][i rows][row_bytes]        (down transposed)
//
// A slot holds a rank's share of one layer: N blocks. With t = tp_size, rank r
// is part j = r mod t of group g = r / t, and holds the owners of its group and
// the slices of its part, owner by owner:
//
//   (o, s)  for o in [g*t, (g+1)*t), for s in [j*N/t, (j+1)*N/t)
//
// So for N = 2:
//
//             rank 0            rank 1
//   EP      (0,0) (0,1)       (1,0) (1,1)       rows of the matrix of blocks
//   TP      (0,0) (1,0)       (0,1) (1,1)       its columns
//
// and a switch between EP and TP is a transpose: block q of my new slot is
// block r (my rank) of peer q's old one, one contiguous copy a peer. Every
// divisor of N is a layout of the same blocks.
//
// Padding makes every N divide: e and i are rounded up (i to whole units), with
// experts that no router names and rows of zeros, which add nothing to any sum.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "common/base/ids.h"
#include "common/layout/layout.h"

namespace moebius {

inline constexpr int kMaxSpareSlots = 8;

// The experts of every MoE layer, and how many slots there are for them.
struct ExpertShape {
  int num_ranks = 1;
  int num_moe_layers = 0;
  int num_experts = 0;        // of the model
  int intermediate_rows = 0;  // of the model, moe_intermediate_size
  int unit_rows = 16;         // rows that stay together
  int64_t row_bytes = 0;      // bytes of one row of one matrix
  int spare_slots = 1;

  int experts_per_block() const {  // e
    return (num_experts + num_ranks - 1) / num_ranks;
  }
  int rows_per_block() const {  // i
    const int cut = num_ranks * unit_rows;
    return (intermediate_rows + cut - 1) / cut * unit_rows;
  }
  int padded_experts() const { return num_ranks * experts_per_block(); }
  int padded_rows() const { return num_ranks * rows_per_block(); }

  // One expert of a block.
  int64_t piece_bytes() const {
    return int64_t{3} * rows_per_block() * row_bytes;
  }
  int64_t block_bytes() const { return experts_per_block() * piece_bytes(); }
  int64_t slot_bytes() const { return num_ranks * block_bytes(); }
  int num_slots() const {
    return num_moe_layers == 0 ? 0 : num_moe_layers + spare_slots;
  }
  int64_t region_bytes() const { return slot_bytes() * num_slots(); }
  // What padding costs the whole group, in all slots.
  int64_t padding_bytes() const {
    return num_ranks * region_bytes() - int64_t{num_experts} * 3 *
                                            intermediate_rows * row_bytes *
                                            num_slots();
  }
};

// kInvalidArgument with the reason: a number out of its range, or experts of
// more than 2^62 bytes.
absl::Status Validate(const ExpertShape& shape);

struct Block {
  int owner = 0;
  int slice = 0;
  friend bool operator==(const Block&, const Block&) = default;
};

// REQUIRES, here and below: layout.divides(num_ranks), and numbers in range.
Rank HolderOf(Layout layout, int num_ranks, Block block);
// Which block of its holder's slot it is, and the other way round.
int IndexOf(Layout layout, int num_ranks, Block block);
Block BlockAt(Layout layout, int num_ranks, Rank rank, int index);

// What a rank's slot is to an operator: `num_experts` experts from
// `first_expert` on (padding among them), each in `num_pieces` pieces, each
// piece rows_per_block() rows from row `first_row` on.
struct SlotView {
  int first_expert = 0;
  int num_experts = 0;
  int num_pieces = 0;
  int first_row = 0;
};
SlotView ViewOf(const ExpertShape& shape, Layout layout, Rank rank);
// Offset in the slot of the first piece of the local expert (0-based in the
// view); the next ones follow block_bytes() apart.
int64_t PieceOffset(const ExpertShape& shape, Layout layout, int local_expert);

// Ranks [first, end) that compute some rows of an expert.
struct RankRange {
  Rank first = 0, end = 0;
};
RankRange RanksOfExpert(const ExpertShape& shape, Layout layout, int expert);

// One run of bytes to pull from `src_rank`. Offsets are inside the source's
// slot of the old layout and inside our slot of the new one. A segment whose
// src_rank is the destination rank is a local copy.
struct CopySegment {
  Rank src_rank = 0;
  int64_t src_offset = 0;
  int64_t dst_offset = 0;
  int64_t size_bytes = 0;
  friend bool operator==(const CopySegment&, const CopySegment&) = default;
};

// Segments that build rank's slot of one layer in layout `to` from everyone's
// slots in `from`: disjoint, covering the slot exactly once, sorted by
// dst_offset, adjacent ones merged; N of them between EP and TP.
// REQUIRES: Validate(shape).ok().
std::vector<CopySegment> PlanSlot(const ExpertShape& shape, Layout from,
                                  Layout to, Rank rank);

}  // namespace moebius
