// Layouts, and which attention heads a rank has in one. Pure values and
// functions; blocks.h has the experts' side, experts_state.h how far a switch
// is.
#pragma once

#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
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
  // Whether a group of `num_ranks` can be divided so. A value from outside is
  // asked this before anything else.
  constexpr bool divides(int num_ranks) const {
    return tp_size >= 1 && num_ranks % tp_size == 0;
  }

  constexpr int num_groups(int num_ranks) const { return num_ranks / tp_size; }
  constexpr int group_of(Rank rank) const { return rank / tp_size; }
  // Which part of its group's heads and rows a rank has.
  constexpr int part_of(Rank rank) const { return rank % tp_size; }
  constexpr Rank first_rank(int group) const { return group * tp_size; }

  friend constexpr bool operator==(const Layout&, const Layout&) = default;
};

constexpr Layout ExpertParallel() { return Layout{1}; }
constexpr Layout TensorParallel(int num_ranks) { return Layout{num_ranks}; }

// "ep", "tp" (one group of all ranks), and between them "tp2", "tp4" and so on.
// A group of one rank has one layout under two names: "ep".
// REQUIRES: layout.divides(num_ranks); num_ranks <= kMaxRanks.
std::string_view LayoutName(Layout layout, int num_ranks);

// The layout of a name: "ep", "tp", or "tpN" with N ranks in a group ("tp1" is
// "ep"). kInvalidArgument with the names that there are. Without a model's
// heads these are the divisors of num_ranks.
absl::StatusOr<Layout> ParseLayout(std::string_view text, int num_ranks);

// kInvalidArgument unless a group has 1 to kMaxRanks ranks.
absl::Status ValidateNumRanks(int num_ranks);

// Attention heads of a rank in a layout.
struct HeadRange {
  int q_begin = 0, q_end = 0;    // query heads
  int kv_begin = 0, kv_end = 0;  // KV heads (replicated when there are fewer
                                 // than ranks in a group)
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
// the number of KV heads divides the other: EP and TP are always there.
absl::Status Validate(const AttentionShape& shape);

// Whether the heads can be divided so: tp_size divides N, and of tp_size and
// the number of KV heads one divides the other. (Of 12 ranks and 4 KV heads
// there is no "tp6".) Layouts from outside are asked this before attention
// meets them; experts have every divisor (blocks.h).
// REQUIRES, here and below: Validate(shape).ok().
bool HeadsDivide(const AttentionShape& shape, Layout layout);

// The layouts for which HeadsDivide(), from EP to TP.
std::vector<Layout> LayoutsOf(const AttentionShape& shape);

// As above, of the layouts for which HeadsDivide().
absl::StatusOr<Layout> ParseLayout(std::string_view text,
                                   const AttentionShape& shape);

// The share of a rank's part of its group: EP all heads, else one tp_size-th.
// With more ranks in a group than KV heads each KV head is held by tp_size /
// kv_heads of them, beside one another. Every rank has equally many.
// REQUIRES: HeadsDivide(shape, layout).
HeadRange HeadsOf(const AttentionShape& shape, Layout layout, Rank rank);

}  // namespace moebius
