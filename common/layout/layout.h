// Layout algebra: which rank owns which bytes of the experts, in either layout,
// and which copies turn one layout into the other. Pure values and functions.
//
// A layer's experts are three matrices (gate, up, down) of `moe_intermediate`
// rows; a row is `row_bytes` bytes and rows are stored in units of
// `unit_rows`, so a slice of whole units is one contiguous block.
//
//   EP slot of rank r: experts [r*E/N, (r+1)*E/N)   [E/N][3][I][row]
//   TP slot of rank r: rows [r*I/N, (r+1)*I/N)      [E][3][I/N][row]
//
// Both have the same size. Slots slide: layer l lives in slot l+1 in EP and in
// slot l in TP, so the slot a switch writes is always free. EP->TP goes through
// the layers upward, TP->EP downward.
#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "common/base/ids.h"

namespace moebius {

// Layout
//
// How wide tensor parallelism is: `tp_size` ranks beside one another are a
// group that shares every head and every expert's rows; groups share sequences
// and experts. 1 is expert parallel (EP): each rank is a group. The number of
// ranks is tensor parallel (TP): there is one group.
struct Layout {
  int tp_size = 1;

  constexpr bool is_ep() const { return tp_size == 1; }
  // Whether it is EP or TP. Steps and KV plans are not written for the
  // layouts between.
  constexpr bool served(int num_ranks) const {
    return tp_size == 1 || tp_size == num_ranks;
  }

  constexpr int num_groups(int num_ranks) const { return num_ranks / tp_size; }
  constexpr int group_of(Rank rank) const { return rank / tp_size; }
  constexpr Rank first_rank(int group) const { return group * tp_size; }

  friend constexpr bool operator==(const Layout&, const Layout&) = default;
};

constexpr Layout ExpertParallel() { return Layout{1}; }
constexpr Layout TensorParallel(int num_ranks) { return Layout{num_ranks}; }

// The layouts of one step; equal in steady state.
struct StepLayout {
  Layout attention;
  Layout experts;
  friend constexpr bool operator==(const StepLayout&,
                                   const StepLayout&) = default;
};

// "ep" or "tp". A group of one rank has one layout under two names: "ep".
std::string_view LayoutName(Layout layout);

// Shape of the experts of every MoE layer.
struct ExpertShape {
  int num_ranks = 1;
  int num_moe_layers = 0;
  int num_experts = 0;
  int intermediate_rows = 0;  // moe_intermediate_size
  int unit_rows = 16;         // rows that stay together
  int64_t row_bytes = 0;      // bytes of one row of one matrix

  int64_t slot_bytes() const {
    return int64_t{num_experts} * 3 * intermediate_rows * row_bytes / num_ranks;
  }
  int num_slots() const { return num_moe_layers + 1; }
  int64_t region_bytes() const { return slot_bytes() * num_slots(); }
};

// kInvalidArgument with the reason when the shape cannot be divided: N must
// divide the experts, and the rows in whole units.
absl::Status Validate(const ExpertShape& shape);

// Slot in which `moe_layer` (0-based among the MoE layers) lives.
int SlotOf(Layout layout, int moe_layer);

// One block to pull from `src_rank`. Offsets are inside the source's slot of
// the old layout and inside our slot of the new one. A segment whose src_rank
// is the destination rank is a local copy.
struct CopySegment {
  Rank src_rank = 0;
  int64_t src_offset = 0;
  int64_t dst_offset = 0;
  int64_t size_bytes = 0;
  friend bool operator==(const CopySegment&, const CopySegment&) = default;
};

// Segments that build rank's slot of one layer in layout `to` from everyone's
// slots in `from`: disjoint, covering the slot exactly once, sorted by
// dst_offset, adjacent ones merged.
// REQUIRES: Validate(shape).ok(); from and to are 1 or num_ranks.
std::vector<CopySegment> PlanSlot(const ExpertShape& shape, Layout from,
                                  Layout to, Rank rank);

// Order in which a switch to `to` goes through the MoE layers.
std::vector<int> SwitchLayerOrder(int num_moe_layers, Layout to);

// Attention heads of a rank in a layout.
struct HeadRange {
  int q_begin = 0, q_end = 0;    // query heads
  int kv_begin = 0, kv_end = 0;  // KV heads (replicated when N > kv_heads)
  int num_q() const { return q_end - q_begin; }
  int num_kv() const { return kv_end - kv_begin; }
  friend bool operator==(const HeadRange&, const HeadRange&) = default;
};

struct AttentionShape {
  int num_ranks = 1;
  int num_q_heads = 0;
  int num_kv_heads = 0;
};

// kInvalidArgument when N does not divide the query heads, or neither of N and
// the number of KV heads divides the other.
absl::Status Validate(const AttentionShape& shape);

// EP: all heads. TP: this rank's share; with more ranks than KV heads each KV
// head is held by N / kv_heads ranks.
HeadRange HeadsOf(const AttentionShape& shape, Layout layout, Rank rank);

}  // namespace moebius
