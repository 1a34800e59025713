// The bodies of Decoder. To be included by the file that instantiates it for a
// device, behind the operators and collectives of that device.
#pragma once

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/base/status_macros.h"
#include "kernels/rotary.h"
#include "worker/model/decoder.h"
#include "worker/model/rotary_angles.h"
#include "worker/peers/exchange.h"

namespace moebius {

template <class D>
Decoder<D>::Decoder(const D& device, const DecoderOptions<D>& options,
                    const RotaryTable& rotary)
    : device_(device),
      shape_(options.shape),
      rank_(options.rank),
      max_rows_(options.max_rows),
      weights_(ViewDense<D>(options.shape, options.dense)),
      experts_(options.experts),
      kv_(options.kv),
      logit_stride_((options.shape.spec.vocab_size + 3) / 4 * 4),
      peers_(*options.peers),
      routing_(std::make_unique<Routing<D>>()) {
  int moe_layer = 0;
  for (const LayerSpec& layer : shape_.spec.layers) {
    moe_index_.push_back(moe_layer);
    if (layer.moe() != nullptr) ++moe_layer;
  }
  const int64_t angles = static_cast<int64_t>(rotary.cos().size());
  cos_ = {device, "rotary cosines", angles};
  sin_ = {device, "rotary sines", angles};
  Upload(device, rotary.cos(), cos_.data());
  Upload(device, rotary.sin(), sin_.data());
  preparation_.rotary = {cos_.data(), sin_.data(), rotary.max_positions(),
                         rotary.head_dim()};
  const int64_t rows = options.max_rows;
  residual_ = {device, "residual", rows * hidden()};
  normed_ = {device, "normed", rows * hidden()};
  qkv_ = {device, "qkv", rows * (shape_.q_size() + 2 * shape_.kv_size())};
  logits_ = {device, "logits", int64_t{peers_.logit_rows()} * logit_stride_};
}

template <class D>
Decoder<D>::~Decoder() = default;

template <class D>
Norm<D> Decoder<D>::NormOf(const float* weight, int size) const {
  return {weight, size, static_cast<float>(shape_.spec.norm_eps)};
}

template <class D>
Norm<D> Decoder<D>::NormBehind(int l) const {
  const bool last = l == shape_.spec.num_layers() - 1;
  return NormOf(last ? weights_.final_norm : weights_.layers[l + 1].input_norm,
                hidden());
}

template <class D>
HeadPreparation<D> Decoder<D>::PreparationOf(int l) const {
  const typename DenseWeights<D>::Layer& weights = weights_.layers[l];
  HeadPreparation<D> how = preparation_;
  if (weights.q_norm == nullptr) return how;
  const int d = shape_.head_dim;
  if (whole_row_norm(l)) {
    how.q_norm = NormOf(weights.q_norm + heads_.q_begin * d, shape_.q_size());
    how.k_norm = NormOf(weights.k_norm + heads_.kv_begin * d, shape_.kv_size());
  } else {
    how.q_norm = NormOf(weights.q_norm, d);
    how.k_norm = NormOf(weights.k_norm, d);
  }
  return how;
}

template <class D>
KvLayer<D> Decoder<D>::KvOf(int l) const {
  const float* const sinks = weights_.layers[l].sinks;
  return {kv_, l, AttentionOf(l).window,
          sinks == nullptr ? nullptr : sinks + heads_.q_begin};
}

template <class D>
std::array<ColumnParallel<D>, 3> Decoder<D>::ProjectionsOf(int l) const {
  const ColumnParallel<D>& qkv = weights_.layers[l].qkv;
  const int d = shape_.head_dim;
  const int k_at = shape_.q_size(), v_at = k_at + shape_.kv_size();
  const int begin = heads_.kv_begin * d, end = heads_.kv_end * d;
  return {qkv.OutputRange(heads_.q_begin * d, heads_.q_end * d),
          qkv.OutputRange(k_at + begin, k_at + end),
          qkv.OutputRange(v_at + begin, v_at + end)};
}

template <class D>
absl::Status Decoder<D>::Begin(const Pass<D>& pass) {
  layout_ = pass.layout.attention;
  if (!HeadsDivide(shape_.attention, layout_)) {
    return absl::InvalidArgumentError(
        absl::StrCat("step: no attention of tp_size ", layout_.tp_size,
                     " in a group of ", shape_.num_ranks, " with ",
                     shape_.attention.num_kv_heads, " KV heads"));
  }
  RETURN_IF_ERROR(Validate(pass.layout.experts, shape_.experts));
  const size_t groups =
      static_cast<size_t>(layout_.num_groups(shape_.num_ranks));
  if (pass.rows_of_group.size() != groups ||
      pass.wanted_of_group.size() != groups) {
    return absl::InvalidArgumentError(absl::StrCat(
        "step: rows of ", pass.rows_of_group.size(), " groups for ", groups));
  }
  int64_t rows = 0;
  for (const int of_group : pass.rows_of_group) rows += of_group;
  if (rows > max_rows_) {
    return absl::InvalidArgumentError(
        absl::StrCat("step: ", rows, " rows; allowed: at most ", max_rows_));
  }
  heads_ = HeadsOf(shape_.attention, layout_, rank_);
  head_shape_ = {heads_.num_q(), heads_.num_kv(), shape_.head_dim};
  peers_.Begin(layout_);
  return absl::OkStatus();
}

template <class D>
absl::Status Decoder<D>::Run(const Pass<D>& pass) {
  RETURN_IF_ERROR(Begin(pass));
  if (observer_ != nullptr) observer_->OnBegin();
  const absl::Status status = RunLayers(pass);
  if (observer_ != nullptr) observer_->OnEnd();
  return status;
}

template <class D>
absl::Status Decoder<D>::RunLayers(const Pass<D>& pass) {
  const int rows = pass.rows.size;
  Part(PassPart::kEmbedding);
  Embed(device_, weights_.embedding, pass.tokens, Residual(rows));
  RmsNorm(device_, Residual(rows),
          NormOf(weights_.layers[0].input_norm, hidden()), Normed(rows));
  for (int l = 0; l < shape_.spec.num_layers(); ++l) {
    RETURN_IF_ERROR(Layer(l, pass));
  }
  return shared() ? SharedLogits(pass) : Logits(pass);
}

template <class D>
absl::Status Decoder<D>::Layer(int l, const Pass<D>& pass) {
  ASSIGN_OR_RETURN(const RowSet<D>* const going_on, Attention(l, pass));
  const int rows = going_on->size;
  const typename DenseWeights<D>::Layer& weights = weights_.layers[l];
  const int stride = head_shape_.cols(), q = head_shape_.q_cols();
  Part(PassPart::kOutput);
  ProjectPartial(
      device_, View<const float, D>{qkv_.data(), rows, q, stride},
      RowSlices<D>{weights.output, heads_.q_begin * head_shape_.head_dim,
                   shape_.output_slice_rows},
      peers_.AttentionSums(rows));
  return shape_.spec.layers[l].moe() != nullptr ? Moe(l, rows, pass)
                                                : DenseMlp(l, rows);
}

// In the last layer all groups go the same way where they meet in it.
template <class D>
absl::StatusOr<const RowSet<D>*> Decoder<D>::Attention(int l,
                                                       const Pass<D>& pass) {
  const int rows = pass.rows.size;
  const View<float, D> qkv{qkv_.data(), rows, head_shape_.cols(),
                           head_shape_.cols()};
  const bool last = l == shape_.spec.num_layers() - 1;
  if (last && (pass.wanted.size < rows || whole_row_norm(l))) {
    RETURN_IF_ERROR(LastAttention(l, pass, qkv));
    return &pass.wanted;
  }
  const int q = head_shape_.q_cols();
  Part(PassPart::kQkv);
  Project(device_, Normed(rows), ProjectionsOf(l), qkv);
  Part(PassPart::kHeads);
  HeadPreparation<D> how = PreparationOf(l);
  RETURN_IF_ERROR(ShareSquares(l, qkv.ColRange(0, q),
                               qkv.ColRange(q, head_shape_.kv_cols()), how));
  PrepareHeads(device_, head_shape_, how, pass.rows, KvOf(l), qkv);
  Part(PassPart::kAttention);
  Attend(device_, head_shape_, pass.rows, KvOf(l), qkv.ColRange(0, q));
  return &pass.rows;
}

template <class D>
absl::Status Decoder<D>::ShareSquares(int l, View<const float, D> queries,
                                      View<const float, D> keys,
                                      HeadPreparation<D>& how) {
  if (!whole_row_norm(l)) return absl::OkStatus();
  const int rows = queries.rows, d = shape_.head_dim;
  const int q_heads = shape_.attention.num_q_heads;
  const int kv_heads = shape_.attention.num_kv_heads;
  const View<float, D> own = peers_.HeadSquares(rows);
  if (queries.cols > 0) {
    SquareHeads(device_, d, queries,
                own.ColRange(heads_.q_begin, heads_.num_q()));
  }
  if (keys.cols > 0) {
    SquareHeads(device_, d, keys,
                own.ColRange(q_heads + heads_.kv_begin, heads_.num_kv()));
  }
  const IndexRange wanted{queries.cols > 0 ? 0 : q_heads,
                          keys.cols > 0 ? q_heads + kv_heads : q_heads};
  ASSIGN_OR_RETURN(const auto squares, peers_.ShareSquares(rows, wanted));
  how.q_squares = squares.ColRange(0, q_heads);
  how.k_squares = squares.ColRange(q_heads, kv_heads);
  return absl::OkStatus();
}

// The last layer stores K and V of every row, but computes only the rows whose
// logits are wanted; they move to the front.
template <class D>
absl::Status Decoder<D>::LastAttention(int l, const Pass<D>& pass,
                                       View<float, D> qkv) {
  const int q = head_shape_.q_cols();
  const std::array<ColumnParallel<D>, 3> parts = ProjectionsOf(l);
  const absl::Span<const ColumnParallel<D>> all_parts = parts;
  HeadPreparation<D> how = PreparationOf(l);
  const View<float, D> kv = qkv.ColRange(q, 2 * head_shape_.kv_cols());
  Part(PassPart::kQkv);
  Project(device_, Normed(qkv.rows), all_parts.subspan(1), kv);
  Part(PassPart::kHeads);
  RETURN_IF_ERROR(ShareSquares(l, kv.ColRange(0, 0),
                               kv.ColRange(0, head_shape_.kv_cols()), how));
  PrepareHeads(device_, HeadShape{0, head_shape_.num_kv, head_shape_.head_dim},
               how, pass.rows, KvOf(l), kv);

  const int wanted = pass.wanted.size;
  if (wanted == 0 && !whole_row_norm(l)) return absl::OkStatus();
  Part(PassPart::kQkv);
  if (wanted < qkv.rows) {
    KeepRows(device_, pass.wanted_rows, wanted, Residual(qkv.rows));
    KeepRows(device_, pass.wanted_rows, wanted, Normed(qkv.rows));
  }
  const View<float, D> queries = qkv.RowRange(0, wanted).ColRange(0, q);
  Project(device_, Normed(wanted), all_parts.first(1), queries);
  Part(PassPart::kHeads);
  RETURN_IF_ERROR(ShareSquares(l, queries, queries.ColRange(0, 0), how));
  PrepareQueries(device_, head_shape_, how, pass.wanted, queries);
  Part(PassPart::kAttention);
  Attend(device_, head_shape_, pass.wanted, KvOf(l), queries);
  return absl::OkStatus();
}

// This rank's experts of a layer.
template <class D>
ExpertSlot<D> Decoder<D>::SlotOf(int l, const StepLayout& layout) const {
  const MoeMlp& moe = *shape_.spec.layers[l].moe();
  const ExpertsState& state = layout.experts;
  const Layout of_layer = state.LayoutOf(shape_.experts, moe_index_[l]);
  ExpertSlot<D> slot =
      ViewSlot<D>(shape_, of_layer,
                  experts_ + state.SlotOf(shape_.experts, moe_index_[l]) *
                                 shape_.experts.slot_bytes());
  if (const auto* clamped = std::get_if<ClampedSwiGlu>(&moe.activation)) {
    slot.activation = {static_cast<float>(clamped->limit),
                       static_cast<float>(clamped->alpha)};
  }
  if (!moe.bias) return slot;
  const SlotView view = ViewOf(shape_.experts, of_layer, rank_);
  slot.bias = weights_.layers[l].expert_bias.Of(view.first_expert);
  slot.bias.gate += view.first_row;
  slot.bias.up += view.first_row;
  if (view.first_row > 0) slot.bias.down = nullptr;
  return slot;
}

// The expert that every row goes to, as a dense MLP.
template <class D>
void Decoder<D>::Shared(int l, View<const float, D> x) {
  const typename DenseWeights<D>::Layer& weights = weights_.layers[l];
  if (weights.shared_gate == nullptr) return;
  const IndexRange slices = ShareOf(shape_.num_shared_slices, layout_.tp_size,
                                    layout_.part_of(rank_));
  Part(PassPart::kExperts);
  GroupGatedRows(device_, x, weights.shared_gate, *routing_);
  Experts(device_, weights.shared.PieceRange(slices.begin, slices.end),
          shape_.shared_slice_rows, x, *routing_, peers_.SharedSums(x.rows));
}

template <class D>
absl::Status Decoder<D>::Moe(int l, int rows, const Pass<D>& pass) {
  const ExpertsState& state = pass.layout.experts;
  const int moe_layer = moe_index_[l];
  const Layout layout = state.LayoutOf(shape_.experts, moe_layer);
  const SlotView view = ViewOf(shape_.experts, layout, rank_);
  const ExpertRange range{view.first_expert, view.num_experts};
  const ExpertSlot<D> slot = SlotOf(l, pass.layout);
  const typename DenseWeights<D>::Layer& weights = weights_.layers[l];
  const RouterSpec& router = shape_.spec.layers[l].moe()->router;

  const Entering<D> entering = peers_.EnteringRows(rows);
  Part(PassPart::kSums);
  RETURN_IF_ERROR(peers_.SumAttention(
      device_, {Residual(rows), NormOf(weights.post_norm, hidden()), entering.x,
                weights.output_bias}));
  Shared(l, entering.x);
  Part(PassPart::kRouting);
  // The softmax of the chosen logits is that of all, normalised anew.
  const bool renormalize =
      router.renormalize || router.score == RouterSpec::Score::kSoftmaxOfChosen;
  Route(device_, {router.top_k, renormalize}, entering.x, weights.router,
        *routing_, entering.assignments);
  const bool last = l == shape_.spec.num_layers() - 1;
  Part(PassPart::kExchange);
  ASSIGN_OR_RETURN(
      const Entered<D> entered,
      peers_.Enter(rows, last ? pass.wanted_of_group : pass.rows_of_group,
                   range));
  Part(PassPart::kRouting);
  Group(device_, entered.assignments, range, *routing_);
  if (observer_ != nullptr) observer_->OnGrouped(moe_layer, *routing_);
  Part(PassPart::kExperts);
  Experts(device_, slot, shape_.expert_slice_rows, entered.x, *routing_,
          entered.sums);
  Part(PassPart::kSums);
  return peers_.Leave(device_, layout,
                      {Residual(rows), NormBehind(l), Normed(rows)});
}

// A dense MLP is an expert that every row goes to, a piece a slice. The ranks
// that have the rows each compute some slices.
template <class D>
absl::Status Decoder<D>::DenseMlp(int l, int rows) {
  const typename DenseWeights<D>::Layer& weights = weights_.layers[l];
  Part(PassPart::kSums);
  RETURN_IF_ERROR(peers_.SumAttention(
      device_, {Residual(rows), NormOf(weights.post_norm, hidden()),
                Normed(rows), weights.output_bias}));
  const IndexRange slices =
      ShareOf(shape_.num_mlp_slices, layout_.tp_size, layout_.part_of(rank_));
  Part(PassPart::kExperts);
  GroupAllRows(device_, rows, *routing_);
  Experts(device_, weights.mlp.PieceRange(slices.begin, slices.end),
          shape_.mlp_slice_rows, Normed(rows), *routing_,
          peers_.DenseSums(rows));
  Part(PassPart::kSums);
  return peers_.SumDense(device_,
                         {Residual(rows), NormBehind(l), Normed(rows)});
}

template <class D>
absl::Status Decoder<D>::Logits(const Pass<D>& pass) {
  const int wanted = pass.wanted.size;
  for (int row = 0; row < wanted; row += peers_.logit_rows()) {
    const int count = std::min(peers_.logit_rows(), wanted - row);
    const View<float, D> logits = LogitRows(count);
    Part(PassPart::kLogits);
    Project(device_, Normed(wanted).RowRange(row, count),
            absl::MakeConstSpan(&weights_.lm_head, 1), logits);
    Draw(pass, {row, row + count}, 1);
  }
  return absl::OkStatus();
}

// Every rank of a group computes its columns of a chunk of rows, and takes its
// rows. All groups meet behind as many chunks as the one with most rows has.
template <class D>
absl::Status Decoder<D>::SharedLogits(const Pass<D>& pass) {
  const int wanted = pass.wanted.size;
  const int most_wanted = *std::max_element(pass.wanted_of_group.begin(),
                                            pass.wanted_of_group.end());
  const int ranks = layout_.tp_size, part_of_rank = layout_.part_of(rank_);
  const IndexRange own = LogitShare(shape_, layout_, rank_);
  for (int row = 0; row < most_wanted; row += peers_.logit_rows()) {
    const int count = std::clamp(wanted - row, 0, peers_.logit_rows());
    Part(PassPart::kLogits);
    if (own.size() > 0 && count > 0) {
      const ColumnParallel<D> part =
          weights_.lm_head.OutputRange(own.begin, own.end);
      Project(device_, Normed(wanted).RowRange(row, count),
              absl::MakeConstSpan(&part, 1), peers_.LogitColumns(count));
    }
    const int most = (count + ranks - 1) / ranks;
    RETURN_IF_ERROR(peers_.ShareLogits(count, LogitRows(most)).status());
    Draw(pass, {row + part_of_rank, row + count}, ranks);
  }
  return absl::OkStatus();
}

// Of the logits of every `every`th of these wanted rows, which are side by
// side; rows behind the last sample draw nothing.
template <class D>
void Decoder<D>::Draw(const Pass<D>& pass, IndexRange rows, int every) {
  const int end = std::min(rows.end, pass.samples.count);
  const int count = std::max(0, end - rows.begin + every - 1) / every;
  Part(PassPart::kSampling);
  Sample(device_, LogitRows(count),
         pass.samples.Each(rows.begin, every, count));
}

template <class D>
void Decoder<D>::SampleLogits(const Pass<D>& pass) {
  const Layout layout = pass.layout.attention;
  Draw(pass, {layout.part_of(rank_), pass.wanted.size}, layout.tp_size);
}

template <class D>
absl::StatusOr<std::unique_ptr<Decoder<D>>> Decoder<D>::Create(
    const D& device, const DecoderOptions<D>& options) {
  const ModelShape& shape = options.shape;
  const auto aligned = [](const std::byte* base) {
    return base != nullptr && reinterpret_cast<uintptr_t>(base) % 64 == 0;
  };
  if (options.rank < 0 || options.rank >= shape.num_ranks ||
      options.max_rows < 1) {
    return absl::InvalidArgumentError(
        absl::StrCat("decoder: rank ", options.rank, " of ", shape.num_ranks,
                     ", ", options.max_rows, " rows"));
  }
  if (!aligned(options.dense) || !aligned(options.kv.base) ||
      (shape.experts.num_moe_layers > 0 && !aligned(options.experts))) {
    return absl::InvalidArgumentError(
        "decoder: a region is missing or not a multiple of 64");
  }
  const int positions =
      options.max_positions > 0
          ? std::min(options.max_positions, shape.spec.max_positions)
          : shape.spec.max_positions;
  constexpr int64_t kMaxRotaryBytes = int64_t{4} << 30;
  if (int64_t{positions} * shape.head_dim * 4 > kMaxRotaryBytes) {
    return absl::InvalidArgumentError(absl::StrCat(
        "decoder: rotary tables of ", positions, " positions are larger than ",
        kMaxRotaryBytes, " bytes; set max_model_len lower"));
  }
  ASSIGN_OR_RETURN(
      const RotaryTable rotary,
      RotaryTable::Create(positions, AnglesOf(shape.spec.layers[0].rotary)));
  return std::unique_ptr<Decoder>(new Decoder(device, options, rotary));
}

}  // namespace moebius
