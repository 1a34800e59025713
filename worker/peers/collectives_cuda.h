// Collectives of GPUs: kernels that pull from the peers' exchange regions, each
// behind a meeting of the ranks.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "common/base/ids.h"
#include "common/layout/layout.h"
#include "kernels/cuda/buffer.h"
#include "kernels/cuda/rows.h"
#include "kernels/project.h"
#include "worker/model/model_shape.h"
#include "worker/peers/collectives.h"
#include "worker/peers/exchange.h"
#include "worker/peers/exchange_kernels.h"
#include "worker/peers/gpu_meetings.h"

namespace moebius {

// As collectives_cpu.h, but that nothing waits on the host: a call launches
// kernels, and a meeting that is given up makes the rest of the pass pass
// quickly, over numbers that mean nothing. Outcome() says so when the stream is
// done. A pass can be captured: what changes from one to the next is in memory
// of the GPU. What a peer shows is only ever read as numbers; ids are checked
// by who uses them.
//
// A kernel of few blocks waits for the others itself; before a larger one a
// block waits alone, so that ranks which share a GPU leave one another room.
//
// Exact: a row's sum, residual and norm have the same bits however many ranks
// it comes from, since it is made by the same code everywhere, in one order.
// Threading: one pass at a time; nothing else may write our exchange region.
template <Numerics N>
class Collectives<Cuda<N>> {
 public:
  using D = Cuda<N>;
  struct Options {
    ModelShape shape;
    Rank rank = 0;
    int max_rows = 0;   // of a step, over the whole group
    int max_slots = 1;  // places of tokens that are drawn
    // Every rank's exchange region as mapped here, for reading and writing,
    // multiples of 256; ExchangeBytes() long; ours among them.
    std::vector<std::byte*> exchange;
    std::vector<std::byte*> signals;  // of each rank
    SignalsFence* fence = nullptr;    // may be null for a group of one
    absl::Duration timeout = absl::Seconds(5);  // of a meeting
    // Blocks that may wait for the others at once.
    int most_waiting_blocks = 16;
  };
  static int64_t ExchangeBytes(const ModelShape& shape, int max_rows,
                               int max_slots);
  // kInvalidArgument when an option is out of range; else the first error of
  // the GPU.
  static absl::StatusOr<std::unique_ptr<Collectives>> Create(
      const D& device, const Options& options);

  Rank rank() const { return rank_; }
  int num_ranks() const { return shape_.num_ranks; }

  // Nothing of ours is on the stream. True: graphs of passes are void.
  bool Restart() { return meetings_->Restart(); }
  // Before each pass, launched or replayed: what its first kernel does; or the
  // same for a pass without the others, whose results mean nothing.
  MeetingStart Start() { return meetings_->Start(most_meetings_); }
  MeetingStart StartAlone() { return meetings_->StartAlone(); }
  // What the pass launches counts from here on.
  void Begin(Layout attention);
  // Behind all else of a pass: what it wrote, here and for peers and their
  // hosts, is there for what comes behind on any rank's stream.
  void End();
  // Of a pass that the stream has done: OK, or which rank did not come, or gave
  // up.
  absl::Status Outcome(const MeetingStart& of) const {
    return meetings_->Outcome(of.first, most_meetings_);
  }
  // Where tokens are drawn to, on all ranks.
  const TokenPlaces& token_places() const { return token_places_; }

  // ---- sums of squares of heads
  View<float, D> HeadSquares(int rows);
  absl::StatusOr<View<const float, D>> ShareSquares(int rows, IndexRange heads);

  // ---- partial sums of attention's output, and of a dense MLP
  PartialRows<D> AttentionSums(int rows) { return Sums(0, rows); }
  absl::Status SumAttention(const D& device, const ResidualNorm<D>& to);
  PartialRows<D> DenseSums(int rows) { return Sums(shared() ? 1 : 0, rows); }
  absl::Status SumDense(const D& device, const ResidualNorm<D>& to);

  // ---- a MoE layer
  Entering<D> EnteringRows(int rows);
  absl::StatusOr<Entered<D>> Enter(int rows,
                                   absl::Span<const int> rows_of_group,
                                   ExpertRange range);
  PartialRows<D> SharedSums(int rows);
  absl::Status Leave(const D& device, Layout experts,
                     const ResidualNorm<D>& to);

  // ---- logits of a chunk of `rows` rows, at most logit_rows(), but in EP
  int logit_rows() const { return place_.logit_rows; }
  View<float, D> LogitColumns(int rows);
  absl::StatusOr<int> ShareLogits(int rows, View<float, D> out);

 private:
  Collectives(const D& device, const Options& options);

  // Whether several ranks have our rows, and whether there are other rows.
  bool shared() const { return !attention_.is_ep(); }
  bool several_groups() const { return attention_.tp_size < shape_.num_ranks; }
  // The first of the ranks that have our rows.
  Rank group_begin() const {
    return attention_.first_rank(attention_.group_of(rank_));
  }
  int hidden() const { return shape_.spec.hidden_size; }
  // The next meeting, for a kernel of that many blocks: its own, or that of one
  // which is launched in front of it.
  int NextMeeting(int64_t blocks);
  // Where the collectives' part of a rank's region begins.
  std::byte* At(Rank rank, int64_t offset) const {
    return exchange_[rank] + kMeetingLinesBytes + offset;
  }
  PartialRows<D> Sums(int which, int rows) const;
  Assignments<D> AssignmentsOf(Rank rank, int rows) const;
  BehindMeeting Behind(int meeting) const {
    return {meetings_->ranks(), meeting, device_.stream, device_.failure};
  }
  void Sum(int meeting, const RowSources& from,
           const ResidualNorm<D>& to) const;
  void SumAll(int which, const ResidualNorm<D>& to);
  void SumOwn(int which, const ResidualNorm<D>& to);

  const D device_;
  const ModelShape shape_;
  const Rank rank_;
  const ExchangeLayout place_;
  const std::vector<std::byte*> exchange_;  // ours included
  const int most_waiting_blocks_;
  const int most_meetings_;  // of a pass; the last one ends it
  TokenPlaces token_places_;
  std::unique_ptr<GpuMeetings> meetings_;

  Layout attention_;  // of the pass
  int meeting_ = 0;   // the next one's index
  int logits_ = 0;    // which of the two buffers is next
  // Rows of a MoE layer, of all groups.
  Buffer<float, D> rows_, weights_;
  Buffer<int32_t, D> experts_;
  Buffer<float, D> squares_;  // of all heads
  int first_row_ = 0;         // of our own among them
};

}  // namespace moebius
