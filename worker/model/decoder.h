// The forward pass of one rank, in any state of the layouts, on any device.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <variant>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "common/base/ids.h"
#include "common/layout/layout.h"
#include "kernels/attend.h"
#include "kernels/formats.h"
#include "kernels/norm.h"
#include "kernels/project.h"
#include "kernels/rotary.h"
#include "kernels/route.h"
#include "kernels/view.h"
#include "worker/model/model_shape.h"
#include "worker/model/pass.h"
#include "worker/model/pass_observer.h"
#include "worker/model/weight_views.h"
#include "worker/peers/collectives.h"

namespace moebius {

template <class D>
struct DecoderOptions {
  ModelShape shape;
  Rank rank = 0;
  int max_rows = 0;       // of a step, over the whole group
  int max_positions = 0;  // longest sequence; 0: what the model allows
  // This rank's regions, multiples of 64, as long as the decoder exists.
  const std::byte* dense = nullptr;    // PlanDense(shape).size_bytes
  const std::byte* experts = nullptr;  // shape.experts.region_bytes()
  PagePool<D> kv;
  Collectives<D>* peers = nullptr;  // as long as the decoder exists
};

// Decoder
//
// A stack of attention and MoE or dense layers over the operators of kernels/.
// With exact numerics the logits of a row are the same bits in every layout,
// for any number of ranks, and whatever else is in the step.
//
// The layouts of attention and of the experts are two axes
// (worker/peers/collectives.h). Every rank of the group runs the same passes
// with the same layouts, also without rows.
//
// What the host decides in a pass follows from the numbers in it alone: nothing
// that a device computed is looked at, so that a pass can be captured.
//
// Cost: no allocation once the largest step has been seen.
// Threading: one Run() at a time; nothing else may write the pages it is given.
//
// The bodies are in decoder-inl.h; each device instantiates them in a file of
// its own (decoder_cpu.cc).
template <class D>
class Decoder {
 public:
  // kInvalidArgument when an option is out of range.
  static absl::StatusOr<std::unique_ptr<Decoder>> Create(
      const D& device, const DecoderOptions<D>& options);
  ~Decoder();

  // kInvalidArgument, before anything is written or waited for, when the layout
  // is none of the group's, or the rows are too many: the other ranks are then
  // left to their deadline. Otherwise the collectives' error; the pass may be
  // run again once the group is in step again.
  absl::Status Run(const Pass<D>& pass);

  // What is wanted of the logits of the pass that ran last, which has left them
  // where they are. REQUIRES: of at most logit_rows() wanted rows.
  void SampleLogits(const Pass<D>& pass);
  int logit_rows() const { return peers_.logit_rows(); }

  // From the next pass on; null: nobody. It outlives the passes. While there is
  // one, passes must not be captured or replayed.
  void Observe(PassObserver<D>* observer) { observer_ = observer; }
  bool observed() const { return observer_ != nullptr; }

  // Positions that it has angles for.
  int max_positions() const { return preparation_.rotary.max_positions; }
  const AttentionShape& attention() const { return shape_.attention; }
  // What the experts' operators keep.
  Routing<D>& routing() { return *routing_; }

 private:
  Decoder(const D& device, const DecoderOptions<D>& options,
          const RotaryTable& rotary);

  // Of attention: whether several ranks have our rows.
  bool shared() const { return !layout_.is_ep(); }
  int hidden() const { return shape_.spec.hidden_size; }
  View<float, D> Residual(int rows) const {
    return {residual_.data(), rows, hidden(), hidden()};
  }
  View<float, D> Normed(int rows) const {
    return {normed_.data(), rows, hidden(), hidden()};
  }
  View<float, D> LogitRows(int rows) const {
    return {logits_.data(), rows, shape_.spec.vocab_size, logit_stride_};
  }
  Norm<D> NormOf(const float* weight, int size) const;
  // Behind layer l: the next one's, or the last one.
  Norm<D> NormBehind(int l) const;
  KvLayer<D> KvOf(int l) const;
  const GroupedQueryAttention& AttentionOf(int l) const {
    return std::get<GroupedQueryAttention>(shape_.spec.layers[l].attention);
  }
  // Whether heads are normed by the squares of all heads of their row.
  bool whole_row_norm(int l) const {
    return AttentionOf(l).qk_norm == GroupedQueryAttention::QkNorm::kWholeRow;
  }
  HeadPreparation<D> PreparationOf(int l) const;
  // This rank's queries, keys and values among a layer's outputs.
  std::array<ColumnParallel<D>, 3> ProjectionsOf(int l) const;

  void Part(PassPart part) const {
    if (observer_ != nullptr) observer_->OnPart(part);
  }
  absl::Status Begin(const Pass<D>& pass);
  absl::Status RunLayers(const Pass<D>& pass);
  absl::Status Layer(int l, const Pass<D>& pass);
  // What of the rows' attention goes on; the first columns of qkv become it.
  absl::StatusOr<const RowSet<D>*> Attention(int l, const Pass<D>& pass);
  absl::Status LastAttention(int l, const Pass<D>& pass, View<float, D> qkv);
  // Squares of all heads of the model, where heads are normed by those: of
  // queries and keys, or of those that have columns.
  absl::Status ShareSquares(int l, View<const float, D> queries,
                            View<const float, D> keys, HeadPreparation<D>& how);
  ExpertSlot<D> SlotOf(int l, const StepLayout& layout) const;
  void Shared(int l, View<const float, D> x);
  absl::Status Moe(int l, int rows, const Pass<D>& pass);
  absl::Status DenseMlp(int l, int rows);
  absl::Status Logits(const Pass<D>& pass);
  absl::Status SharedLogits(const Pass<D>& pass);
  void Draw(const Pass<D>& pass, IndexRange rows, int every);

  const D device_;
  const ModelShape shape_;
  const Rank rank_;
  const int max_rows_;
  const DenseWeights<D> weights_;
  const std::byte* const experts_;
  const PagePool<D> kv_;
  const int logit_stride_;  // rows begin at multiples of 16 bytes
  Collectives<D>& peers_;
  std::vector<int> moe_index_;  // [layer]
  PassObserver<D>* observer_ = nullptr;

  // Of the pass being run.
  Layout layout_;
  HeadRange heads_;
  HeadShape head_shape_;

  Buffer<float, D> cos_, sin_;
  HeadPreparation<D> preparation_;  // but for the norms
  Buffer<float, D> residual_, normed_, qkv_, logits_;
  std::unique_ptr<Routing<D>> routing_;
};

}  // namespace moebius
