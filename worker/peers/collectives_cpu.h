// Collectives by pulls from the peers' exchange regions, a barrier before each.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "common/base/ids.h"
#include "common/layout/layout.h"
#include "kernels/project.h"
#include "kernels/view.h"
#include "worker/model/model_shape.h"
#include "worker/peers/barrier.h"
#include "worker/peers/collectives.h"
#include "worker/peers/exchange.h"

namespace moebius {

// With attention in EP a rank waits twice a MoE layer; in TP twice a layer and
// once for each chunk of logits; between them once more a MoE layer than in TP.
// A group of one waits for nobody.
// Threading: one pass at a time; nothing else may write our exchange region.
template <>
class Collectives<Cpu> {
 public:
  struct Options {
    ModelShape shape;
    Rank rank = 0;
    int max_rows = 0;  // of a step, over the whole group
    // Every rank's exchange region as mapped here, multiples of 64;
    // PlanExchange() says how long. Our own is written.
    std::byte* exchange = nullptr;
    std::vector<const std::byte*> peer_exchange;  // empty for a group of one
    Barrier* barrier = nullptr;                   // null for a group of one
  };
  // kInvalidArgument when an option is out of range.
  static absl::StatusOr<std::unique_ptr<Collectives>> Create(
      const Cpu& device, const Options& options);

  void Begin(Layout attention) {
    attention_ = attention;
    logits_ = 0;
  }

  // ---- sums of squares of heads
  // Of the model's query heads, and then its KV heads, where ours go:
  // [rows][heads].
  Rows HeadSquares(int rows);
  // The same with those in `heads` of all ranks that have our rows; what was
  // shared of other heads before stays.
  absl::StatusOr<ConstRows> ShareSquares(int rows, IndexRange heads);

  // ---- partial sums of attention's output, and of a dense MLP
  FixedRows AttentionSums(int rows) { return Sums(0, rows); }
  absl::Status SumAttention(const Cpu& device, const ResidualNorm<Cpu>& to);
  FixedRows DenseSums(int rows) { return Sums(shared() ? 1 : 0, rows); }
  absl::Status SumDense(const Cpu& device, const ResidualNorm<Cpu>& to);

  // ---- a MoE layer
  Entering<Cpu> EnteringRows(int rows);
  // `rows` are there of our group's; `rows_of_group` of each where there are
  // several.
  absl::StatusOr<Entered<Cpu>> Enter(int rows,
                                     absl::Span<const int> rows_of_group,
                                     ExpertRange range);
  // Of the expert that all rows go to, of our group's rows; Leave() adds them.
  FixedRows SharedSums(int rows);
  // Adds the sums of all ranks that hold something of a row's experts, which
  // are in layout `experts`.
  absl::Status Leave(const Cpu& device, Layout experts,
                     const ResidualNorm<Cpu>& to);

  // ---- logits of a chunk of `rows` rows, at most logit_rows(), but in EP
  int logit_rows() const { return place_.logit_rows; }
  // Where our columns go: [rows][LogitShare()].
  Rows LogitColumns(int rows);
  // Whole rows p, p + tp_size ... of the chunk, p being our part of the group,
  // into `out`; their number. REQUIRES: out has room for them.
  absl::StatusOr<int> ShareLogits(int rows, Rows out);

 private:
  Collectives(const Cpu& device, const Options& options);

  // Whether several ranks have our rows, and whether there are other rows.
  bool shared() const { return !attention_.is_ep(); }
  bool several_groups() const { return attention_.tp_size < shape_.num_ranks; }
  // The ranks that have our rows.
  Rank group_begin() const {
    return attention_.first_rank(attention_.group_of(rank_));
  }
  int num_ranks() const { return shape_.num_ranks; }
  int hidden() const { return shape_.spec.hidden_size; }
  absl::Status Wait();
  FixedRows Sums(int which, int rows) const;
  ConstFixedRows PeerSums(Rank rank, int which, int first, int rows) const;
  absl::Status SumAll(const Cpu& device, int which,
                      const ResidualNorm<Cpu>& to);
  void SumOwn(const Cpu& device, int which, const ResidualNorm<Cpu>& to);
  Assignments<Cpu> AssignmentsAt(const std::byte* exchange, int rows) const;
  void Gather(Rank rank, int at, int rows, ExpertRange range);

  const ModelShape shape_;
  const Rank rank_;
  const ExchangeLayout place_;
  std::byte* const exchange_;
  std::vector<const std::byte*> peers_;  // ours included
  Barrier* const barrier_;

  Layout attention_;  // of the pass
  int logits_ = 0;    // which of the two buffers is next
  // Rows of a MoE layer, of all groups.
  Buffer<float, Cpu> rows_, weights_;
  Buffer<int32_t, Cpu> experts_;
  Buffer<float, Cpu> squares_;  // of all heads
  int first_row_ = 0;           // of our own among them
};

}  // namespace moebius
