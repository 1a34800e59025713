#include "worker/model/forward.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/base/check.h"
#include "common/base/status_macros.h"
#include "kernels/attention.h"
#include "kernels/gemm.h"
#include "kernels/moe.h"
#include "kernels/norm.h"
#include "worker/model/kv_layout.h"
#include "worker/model/step_rows.h"
#include "worker/model/weights.h"
#include "worker/peers/exchange.h"

namespace moebius {
namespace {

// Uninitialised memory whose pages are first touched when used.
template <typename T>
class Buffer {
 public:
  void Allocate(int64_t elements) {
    data_ = std::make_unique_for_overwrite<T[]>(static_cast<size_t>(elements));
  }
  T* data() const { return data_.get(); }

 private:
  std::unique_ptr<T[]> data_;
};

class ForwardImpl : public Forward {
 public:
  ForwardImpl(const ForwardOptions& options, RotaryTable rotary);

  absl::Status Run(const ForwardBatch& batch, LogitsSink& sink) override;

 private:
  // Of attention: whether all ranks have all rows of the step.
  bool tp() const { return !layout_.is_ep(); }
  int hidden() const { return shape_.spec.hidden_size; }
  int num_ranks() const { return shape_.num_ranks; }
  float eps() const { return static_cast<float>(shape_.spec.norm_eps); }

  // The first `rows` rows of a buffer.
  Rows Residual(int rows) const { return RowsOf(residual_.data(), rows); }
  Rows Normed(int rows) const { return RowsOf(normed_.data(), rows); }
  Rows RowsOf(float* data, int rows) const {
    return {data, rows, hidden(), hidden()};
  }
  FixedRows Sums(int which, int rows) const {
    return {reinterpret_cast<int64_t*>(exchange_ + place_.sums[which]), rows,
            hidden(), hidden()};
  }
  ConstFixedRows PeerSums(Rank rank, int which, int first, int rows) const {
    const int64_t* base =
        reinterpret_cast<const int64_t*>(peers_[rank] + place_.sums[which]);
    return {base + int64_t{first} * hidden(), rows, hidden(), hidden()};
  }

  absl::Status Wait() { return barrier_->Wait(); }
  absl::Status Layer(int l, const ForwardBatch& batch, int* rows);
  void Attention(int l, absl::Span<const QueryChunk> chunks, ConstRows normed,
                 Rows qkv);
  int LastAttention(int l, const ForwardBatch& batch, int rows, Rows qkv);
  absl::Status ReduceOverRanks(int which, int rows);
  void MlpSums(int l, ConstRows normed, FixedRows sums);
  void Route(int l, ConstRows normed, int32_t* experts, float* weights);
  absl::Status Moe(int l, int rows, const ExpertsState& state);
  struct Entered;
  absl::StatusOr<Entered> Enter(int l, int rows, const SlotView& view);
  absl::Status Leave(const Entered& entered, int rows, Layout experts);
  absl::Status DenseMlp(int l, int rows);
  absl::Status Gather(int rows, const SlotView& view, Entered* entered);
  void ReduceTouched(int first_row, int rows, Layout layout);
  absl::Status Logits(const ForwardBatch& batch, LogitsSink& sink);
  absl::Status LogitsTp(const ForwardBatch& batch, LogitsSink& sink);

  const ModelShape shape_;
  const Rank rank_;
  const ExchangeLayout place_;
  const DenseWeights weights_;
  const KvPool kv_;
  std::byte* const exchange_;
  std::vector<const std::byte*> peers_;  // ours included
  Barrier* const barrier_;
  ThreadPool* const pool_;
  const RotaryTable rotary_;
  std::vector<int> moe_index_;                                // [layer]
  std::vector<std::vector<ExpertView>> ep_slots_, tp_slots_;  // [slot]

  // Of the step being run.
  Layout layout_;
  HeadRange heads_;
  StepRows rows_;

  Buffer<float> residual_, normed_, qkv_, gathered_, router_logits_,
      weights_of_, logits_;
  Buffer<int32_t> experts_of_;
  ExpertGroups groups_;
  ExpertWorkspace workspace_;
};

ForwardImpl::ForwardImpl(const ForwardOptions& options, RotaryTable rotary)
    : shape_(options.shape),
      rank_(options.rank),
      place_(PlanExchange(options.shape, options.max_rows)),
      weights_(ViewDense(options.shape, options.dense)),
      kv_{options.kv, options.num_pages,
          KvFormat(options.shape, options.kv_type)},
      exchange_(options.exchange),
      peers_(options.peer_exchange),
      barrier_(options.barrier),
      pool_(options.pool),
      rotary_(std::move(rotary)) {
  peers_.resize(static_cast<size_t>(shape_.num_ranks));
  peers_[rank_] = exchange_;

  int moe_layer = 0;
  for (const LayerSpec& layer : shape_.spec.layers) {
    moe_index_.push_back(moe_layer);
    if (layer.moe() != nullptr) ++moe_layer;
  }
  for (int slot = 0; slot < shape_.experts.num_slots(); ++slot) {
    const std::byte* const base =
        options.experts + slot * shape_.experts.slot_bytes();
    ep_slots_.push_back(ViewSlot(shape_, ExpertParallel(), base));
    tp_slots_.push_back(
        ViewSlot(shape_, TensorParallel(shape_.num_ranks), base));
  }

  const int64_t rows = options.max_rows;
  const int64_t assignments = rows * shape_.top_k;
  residual_.Allocate(rows * hidden());
  normed_.Allocate(rows * hidden());
  qkv_.Allocate(rows * (shape_.q_size() + 2 * shape_.kv_size()));
  gathered_.Allocate(rows * hidden());
  router_logits_.Allocate(rows * shape_.experts.num_experts);
  weights_of_.Allocate(assignments);
  experts_of_.Allocate(assignments);
  logits_.Allocate(int64_t{place_.logit_rows} * shape_.spec.vocab_size);
}

absl::Status ForwardImpl::Run(const ForwardBatch& batch, LogitsSink& sink) {
  layout_ = batch.layout.attention;
  if (!layout_.served(num_ranks())) {
    return absl::InvalidArgumentError(
        absl::StrCat("step: attention of tp_size ", layout_.tp_size,
                     "; allowed: 1 or ", num_ranks()));
  }
  RETURN_IF_ERROR(Validate(batch.layout.experts, shape_.experts));
  heads_ = HeadsOf(shape_.attention, layout_, rank_);
  RETURN_IF_ERROR(rows_.Build(batch, num_ranks(), rank_, place_.max_rows,
                              rotary_.max_positions(), heads_.num_kv()));
  int rows = rows_.num_rows();
  RETURN_IF_ERROR(ValidateChunks(rows_.chunks(), rows, heads_.num_kv(), kv_));
  RETURN_IF_ERROR(
      EmbedRows(weights_.embedding, batch.tokens, Residual(rows), pool_));
  for (int l = 0; l < shape_.spec.num_layers(); ++l) {
    RETURN_IF_ERROR(Layer(l, batch, &rows));
  }
  return tp() ? LogitsTp(batch, sink) : Logits(batch, sink);
}

// *rows is the number of rows that are computed; after the last layer these are
// the rows whose logits are wanted.
absl::Status ForwardImpl::Layer(int l, const ForwardBatch& batch, int* rows) {
  const int d = shape_.head_dim;
  const int q = heads_.num_q() * d, kv = heads_.num_kv() * d;
  const DenseWeights::Layer& weights = weights_.layers[l];
  const int qkv_size = q + 2 * kv;
  const Rows qkv{qkv_.data(), *rows, qkv_size, qkv_size};
  RmsNorm(Residual(*rows), weights.input_norm, eps(), Normed(*rows), pool_);
  const bool last = l == shape_.spec.num_layers() - 1;
  if (last && static_cast<int>(batch.logit_rows.size()) < *rows) {
    *rows = LastAttention(l, batch, *rows, qkv);
  } else {
    Attention(l, rows_.chunks(), Normed(*rows), qkv);
  }
  // The attention of both layouts is summed in buffer 0: in EP nobody else
  // reads it before the rows are shown.
  const FixedRows sums = Sums(0, *rows);
  ZeroFixedPoint(sums, pool_);
  RowParallelGemm(Rows{qkv_.data(), *rows, q, qkv_size}, weights.output,
                  heads_.q_begin * d, shape_.output_slice_rows, sums, pool_);
  if (tp()) {
    RETURN_IF_ERROR(ReduceOverRanks(0, *rows));
  } else {
    const ConstFixedRows own = sums;
    ReduceFixedPoint(absl::MakeConstSpan(&own, 1), Residual(*rows), pool_);
  }
  if (shape_.spec.layers[l].moe() == nullptr) return DenseMlp(l, *rows);
  return Moe(l, *rows, batch.layout.experts);
}

// qkv columns [0, q) become the attention of all rows.
void ForwardImpl::Attention(int l, absl::Span<const QueryChunk> chunks,
                            ConstRows normed, Rows qkv) {
  const int d = shape_.head_dim;
  const int q = heads_.num_q() * d, kv = heads_.num_kv() * d;
  const DenseWeights::Layer& weights = weights_.layers[l];
  const int k_at = shape_.q_size(), v_at = k_at + shape_.kv_size();
  const PackedMatrix parts[] = {
      weights.qkv.OutputRange(heads_.q_begin * d, heads_.q_end * d),
      weights.qkv.OutputRange(k_at + heads_.kv_begin * d,
                              k_at + heads_.kv_end * d),
      weights.qkv.OutputRange(v_at + heads_.kv_begin * d,
                              v_at + heads_.kv_end * d)};
  Gemm(normed, parts, qkv, pool_);
  const Rows queries = qkv.ColRange(0, q), keys = qkv.ColRange(q, kv);
  HeadNormRotary(queries, weights.q_norm, eps(), rows_.positions(), rotary_,
                 pool_);
  HeadNormRotary(keys, weights.k_norm, eps(), rows_.positions(), rotary_,
                 pool_);
  WriteKv(keys, qkv.ColRange(q + kv, kv), chunks, heads_.num_kv(), l, kv_,
          pool_);
  PagedAttention(queries, chunks, heads_.num_kv(), l, kv_, queries, pool_);
}

// The last layer stores K and V of every row, but computes only the rows whose
// logits are wanted; they move to the front.
int ForwardImpl::LastAttention(int l, const ForwardBatch& batch, int rows,
                               Rows qkv) {
  const int d = shape_.head_dim;
  const int q = heads_.num_q() * d, kv = heads_.num_kv() * d;
  const DenseWeights::Layer& weights = weights_.layers[l];
  const int k_at = shape_.q_size(), v_at = k_at + shape_.kv_size();
  const PackedMatrix parts[] = {
      weights.qkv.OutputRange(k_at + heads_.kv_begin * d,
                              k_at + heads_.kv_end * d),
      weights.qkv.OutputRange(v_at + heads_.kv_begin * d,
                              v_at + heads_.kv_end * d)};
  const Rows keys = qkv.ColRange(q, kv);
  Gemm(Normed(rows), parts, qkv.ColRange(q, 2 * kv), pool_);
  HeadNormRotary(keys, weights.k_norm, eps(), rows_.positions(), rotary_,
                 pool_);
  WriteKv(keys, qkv.ColRange(q + kv, kv), rows_.chunks(), heads_.num_kv(), l,
          kv_, pool_);

  const int wanted = static_cast<int>(batch.logit_rows.size());
  const size_t row_bytes = static_cast<size_t>(hidden()) * sizeof(float);
  for (int j = 0; j < wanted; ++j) {
    const int from = static_cast<int>(batch.logit_rows[j]);
    if (from == j) continue;
    std::memcpy(Residual(wanted).row(j), Residual(rows).row(from), row_bytes);
    std::memcpy(Normed(wanted).row(j), Normed(rows).row(from), row_bytes);
  }
  if (wanted == 0) return 0;
  rows_.KeepOnly(batch.logit_rows);
  const Rows queries = qkv.RowRange(0, wanted).ColRange(0, q);
  Gemm(Normed(wanted),
       weights.qkv.OutputRange(heads_.q_begin * d, heads_.q_end * d), queries,
       pool_);
  HeadNormRotary(queries, weights.q_norm, eps(), rows_.positions(), rotary_,
                 pool_);
  PagedAttention(queries, rows_.chunks(), heads_.num_kv(), l, kv_, queries,
                 pool_);
  return wanted;
}

// TP: residual += the sums of all ranks.
absl::Status ForwardImpl::ReduceOverRanks(int which, int rows) {
  RETURN_IF_ERROR(Wait());
  ConstFixedRows sources[kMaxRanks];
  for (Rank r = 0; r < num_ranks(); ++r) {
    sources[r] = PeerSums(r, which, 0, rows);
  }
  ReduceFixedPoint(absl::MakeConstSpan(sources, num_ranks()), Residual(rows),
                   pool_);
  return absl::OkStatus();
}

void ForwardImpl::Route(int l, ConstRows normed, int32_t* experts,
                        float* weights) {
  const RouterSpec& router = shape_.spec.layers[l].moe()->router;
  const Rows logits{router_logits_.data(), normed.rows, router.num_experts,
                    router.num_experts};
  Gemm(normed, weights_.layers[l].router, logits, pool_);
  const size_t count = static_cast<size_t>(normed.rows) * router.top_k;
  RouteTopK(logits, router.top_k, router.renormalize,
            absl::MakeSpan(experts, count), absl::MakeSpan(weights, count),
            pool_);
}

// Rows as the experts of this rank are to see them, with their routing.
struct ForwardImpl::Entered {
  Rows x;
  const int32_t* experts = nullptr;  // [x.rows][top_k]
  const float* weights = nullptr;    // the same
  int first_row = 0;                 // of this rank's own rows among them
};

absl::Status ForwardImpl::Moe(int l, int rows, const ExpertsState& state) {
  const int moe_layer = moe_index_[l];
  const Layout layout = state.LayoutOf(shape_.experts, moe_layer);
  const int slot = state.SlotOf(shape_.experts, moe_layer);
  const SlotView view = ViewOf(shape_.experts, layout, rank_);
  ASSIGN_OR_RETURN(const Entered entered, Enter(l, rows, view));
  const int top_k = shape_.top_k;
  const size_t count = static_cast<size_t>(entered.x.rows) * top_k;
  GroupByExpert(absl::MakeConstSpan(entered.experts, count),
                absl::MakeConstSpan(entered.weights, count), top_k,
                view.first_expert, view.num_experts, &groups_);
  ExpertsFfn(entered.x, layout.is_ep() ? ep_slots_[slot] : tp_slots_[slot],
             groups_, shape_.expert_slice_rows, Sums(1, entered.x.rows),
             &workspace_, pool_);
  return Leave(entered, rows, layout);
}

// Attention in TP: all rows are here already. In EP the owner shows its rows
// with their experts, and each rank takes those that it has an expert of.
// The sums of what is computed here begin at zero.
absl::StatusOr<ForwardImpl::Entered> ForwardImpl::Enter(int l, int rows,
                                                        const SlotView& view) {
  const absl::Span<const float> norm = weights_.layers[l].post_norm;
  if (tp() || num_ranks() == 1) {
    RmsNorm(Residual(rows), norm, eps(), Normed(rows), pool_);
    Route(l, Normed(rows), experts_of_.data(), weights_of_.data());
    ZeroFixedPoint(Sums(1, rows), pool_);
    return Entered{Normed(rows), experts_of_.data(), weights_of_.data(), 0};
  }
  const Rows shown =
      RowsOf(reinterpret_cast<float*>(exchange_ + place_.rows), rows);
  RmsNorm(Residual(rows), norm, eps(), shown, pool_);
  Route(l, shown, reinterpret_cast<int32_t*>(exchange_ + place_.experts),
        reinterpret_cast<float*>(exchange_ + place_.weights));
  const int64_t header = rows;
  std::memcpy(exchange_, &header, sizeof(header));
  RETURN_IF_ERROR(Wait());
  Entered entered;
  RETURN_IF_ERROR(Gather(rows, view, &entered));
  return entered;
}

// Pulls the experts of all rows, and the rows that some expert here wants;
// zeroes the sums of these rows. Rows of rank r stand behind those of r - 1.
absl::Status ForwardImpl::Gather(int rows, const SlotView& view,
                                 Entered* entered) {
  const int top_k = shape_.top_k;
  const size_t row_bytes = static_cast<size_t>(hidden()) * sizeof(float);
  int at = 0;
  for (Rank r = 0; r < num_ranks(); ++r) {
    int64_t count = rows;
    if (r != rank_) std::memcpy(&count, peers_[r], sizeof(count));
    if (count < 0 || count > place_.max_rows - at) {
      return absl::DataLossError(absl::StrCat("rank ", r, " shows ", count,
                                              " rows of at most ",
                                              place_.max_rows, " in a step"));
    }
    if (r == rank_) entered->first_row = at;
    const size_t assignments = static_cast<size_t>(count) * top_k;
    int32_t* const experts = experts_of_.data() + int64_t{at} * top_k;
    std::memcpy(experts, peers_[r] + place_.experts,
                assignments * sizeof(int32_t));
    std::memcpy(weights_of_.data() + int64_t{at} * top_k,
                peers_[r] + place_.weights, assignments * sizeof(float));
    const float* const shown =
        reinterpret_cast<const float*>(peers_[r] + place_.rows);
    for (int64_t i = 0; i < count; ++i) {
      const int32_t* const of_row = experts + i * top_k;
      const bool here = std::any_of(of_row, of_row + top_k, [&](int32_t e) {
        return view.first_expert <= e && e < view.end_expert();
      });
      if (!here) continue;
      const int64_t row = at + i;
      std::memcpy(gathered_.data() + row * hidden(), shown + i * hidden(),
                  row_bytes);
      std::memset(Sums(1, 0).data + row * hidden(), 0,
                  static_cast<size_t>(hidden()) * sizeof(int64_t));
    }
    at += static_cast<int>(count);
  }
  entered->x = RowsOf(gathered_.data(), at);
  entered->experts = experts_of_.data();
  entered->weights = weights_of_.data();
  return absl::OkStatus();
}

// residual += the sums of the rows that are here after the layer.
absl::Status ForwardImpl::Leave(const Entered& entered, int rows,
                                Layout experts) {
  if (num_ranks() == 1) {
    const ConstFixedRows own = Sums(1, rows);
    ReduceFixedPoint(absl::MakeConstSpan(&own, 1), Residual(rows), pool_);
    return absl::OkStatus();
  }
  if (tp()) return ReduceOverRanks(1, rows);
  RETURN_IF_ERROR(Wait());
  ReduceTouched(entered.first_row, rows, experts);
  return absl::OkStatus();
}

// residual += the sums of the ranks that hold something of an expert of the
// row, for runs of rows with the same ranks.
void ForwardImpl::ReduceTouched(int first_row, int rows, Layout layout) {
  const int top_k = shape_.top_k;
  const int32_t* const experts =
      reinterpret_cast<const int32_t*>(exchange_ + place_.experts);
  const auto ranks_of = [&](int row) {
    uint32_t ranks = 0;
    for (int t = 0; t < top_k; ++t) {
      const RankRange range = RanksOfExpert(shape_.experts, layout,
                                            experts[int64_t{row} * top_k + t]);
      for (Rank r = range.first; r < range.end; ++r) ranks |= 1u << r;
    }
    return ranks;
  };
  for (int row = 0; row < rows;) {
    const uint32_t ranks = ranks_of(row);
    int end = row + 1;
    while (end < rows && ranks_of(end) == ranks) ++end;
    ConstFixedRows sources[kMaxRanks];
    size_t num_sources = 0;
    for (Rank r = 0; r < num_ranks(); ++r) {
      if ((ranks >> r & 1) == 0) continue;
      sources[num_sources++] = PeerSums(r, 1, first_row + row, end - row);
    }
    ReduceFixedPoint(absl::MakeConstSpan(sources, num_sources),
                     Residual(rows).RowRange(row, end - row), pool_);
    row = end;
  }
}

// A dense MLP is an expert that every row goes to, a piece a slice. In EP it is
// the owner's alone, in TP a rank computes some slices.
absl::Status ForwardImpl::DenseMlp(int l, int rows) {
  const DenseWeights::Layer& weights = weights_.layers[l];
  const Rows normed = Normed(rows);
  RmsNorm(Residual(rows), weights.post_norm, eps(), normed, pool_);
  const FixedRows sums = Sums(tp() ? 1 : 0, rows);
  ZeroFixedPoint(sums, pool_);
  const IndexRange slices =
      tp() ? ShareOf(shape_.num_mlp_slices, num_ranks(), rank_)
           : IndexRange{0, shape_.num_mlp_slices};
  const ExpertView mlp = weights.mlp.PieceRange(slices.begin, slices.end);
  GroupAllRows(rows, &groups_);
  ExpertsFfn(normed, absl::MakeConstSpan(&mlp, 1), groups_,
             shape_.mlp_slice_rows, sums, &workspace_, pool_);
  if (tp()) return ReduceOverRanks(1, rows);
  const ConstFixedRows own = sums;
  ReduceFixedPoint(absl::MakeConstSpan(&own, 1), Residual(rows), pool_);
  return absl::OkStatus();
}

absl::Status ForwardImpl::Logits(const ForwardBatch& batch, LogitsSink& sink) {
  const int wanted = static_cast<int>(batch.logit_rows.size());
  const int vocab = shape_.spec.vocab_size;
  RmsNorm(Residual(wanted), weights_.final_norm, eps(), Normed(wanted), pool_);
  for (int row = 0; row < wanted; row += place_.logit_rows) {
    const int count = std::min(place_.logit_rows, wanted - row);
    const Rows logits{logits_.data(), count, vocab, vocab};
    Gemm(Normed(wanted).RowRange(row, count), weights_.lm_head, logits, pool_);
    for (int i = 0; i < count; ++i) {
      sink.OnLogits(static_cast<size_t>(row + i),
                    absl::MakeSpan(logits.row(i), static_cast<size_t>(vocab)));
    }
  }
  return absl::OkStatus();
}

// Every rank computes its columns of a chunk of rows, and takes its rows.
absl::Status ForwardImpl::LogitsTp(const ForwardBatch& batch,
                                   LogitsSink& sink) {
  const int wanted = static_cast<int>(batch.logit_rows.size());
  const int vocab = shape_.spec.vocab_size;
  const IndexRange own = LogitShare(shape_, rank_);
  RmsNorm(Residual(wanted), weights_.final_norm, eps(), Normed(wanted), pool_);
  int which = 0;
  for (int row = 0; row < wanted; row += place_.logit_rows, which ^= 1) {
    const int count = std::min(place_.logit_rows, wanted - row);
    if (own.size() > 0) {
      const Rows columns{
          reinterpret_cast<float*>(exchange_ + place_.logits[which]), count,
          own.size(), own.size()};
      Gemm(Normed(wanted).RowRange(row, count),
           weights_.lm_head.OutputRange(own.begin, own.end), columns, pool_);
    }
    RETURN_IF_ERROR(Wait());
    // A chunk is a multiple of the ranks long, so its first row is rank 0's.
    for (int i = rank_; i < count; i += num_ranks()) {
      for (Rank r = 0; r < num_ranks(); ++r) {
        const IndexRange share = LogitShare(shape_, r);
        const float* const columns =
            reinterpret_cast<const float*>(peers_[r] + place_.logits[which]);
        std::memcpy(logits_.data() + share.begin,
                    columns + int64_t{i} * share.size(),
                    static_cast<size_t>(share.size()) * sizeof(float));
      }
      sink.OnLogits(static_cast<size_t>(row + i),
                    absl::MakeSpan(logits_.data(), static_cast<size_t>(vocab)));
    }
  }
  return absl::OkStatus();
}

}  // namespace

KvPageFormat Forward::KvFormat(const ModelShape& shape, KvType type) {
  return PageFormatOf(MakeKvLayout(shape.spec, type));
}

int64_t Forward::ExchangeBytes(const ModelShape& shape, int max_rows) {
  return PlanExchange(shape, max_rows).size_bytes;
}

absl::StatusOr<std::unique_ptr<Forward>> Forward::Create(
    const ForwardOptions& options) {
  const ModelShape& shape = options.shape;
  const auto aligned = [](const std::byte* base) {
    return base != nullptr && reinterpret_cast<uintptr_t>(base) % 64 == 0;
  };
  if (options.rank < 0 || options.rank >= shape.num_ranks) {
    return absl::InvalidArgumentError(
        absl::StrCat("forward: rank ", options.rank, " of ", shape.num_ranks));
  }
  constexpr int kMaxStepRows = 1 << 20;
  if (options.max_rows < 1 || options.max_rows > kMaxStepRows) {
    return absl::InvalidArgumentError(
        absl::StrCat("forward: max_rows ", options.max_rows, "; allowed: 1 to ",
                     kMaxStepRows));
  }
  if (!aligned(options.dense) || !aligned(options.kv) ||
      !aligned(options.exchange) ||
      (shape.experts.num_moe_layers > 0 && !aligned(options.experts))) {
    return absl::InvalidArgumentError(
        "forward: a region is missing or not a multiple of 64");
  }
  if (shape.num_ranks > 1) {
    if (options.barrier == nullptr ||
        options.peer_exchange.size() != static_cast<size_t>(shape.num_ranks)) {
      return absl::InvalidArgumentError(
          "forward: a group needs a barrier and every exchange region");
    }
    for (Rank r = 0; r < shape.num_ranks; ++r) {
      if (r != options.rank && !aligned(options.peer_exchange[r])) {
        return absl::InvalidArgumentError(absl::StrCat(
            "forward: exchange region of rank ", r, " is not mapped"));
      }
    }
  }
  const int positions =
      options.max_positions > 0
          ? std::min(options.max_positions, shape.spec.max_positions)
          : shape.spec.max_positions;
  constexpr int64_t kMaxRotaryBytes = int64_t{4} << 30;
  if (int64_t{positions} * shape.head_dim * 4 > kMaxRotaryBytes) {
    return absl::InvalidArgumentError(absl::StrCat(
        "forward: rotary tables of ", positions, " positions are larger than ",
        kMaxRotaryBytes, " bytes; set max_model_len lower"));
  }
  ASSIGN_OR_RETURN(RotaryTable rotary,
                   RotaryTable::Create(positions, shape.head_dim,
                                       shape.spec.layers[0].rotary.theta));
  return std::make_unique<ForwardImpl>(options, std::move(rotary));
}

}  // namespace moebius
