#include "worker/model/weight_plan.h"

#include <algorithm>
#include <utility>

#include "worker/model/weights.h"

namespace moebius {
namespace {

// Of the largest run of panels, unless a panel is larger.
constexpr int64_t kRunElements = 4 << 20;

class TensorList {
 public:
  TensorList(const ModelShape& shape, TensorNames names)
      : shape_(shape), names_(names) {}

  std::vector<ExpectedTensor> All() && {
    const int64_t hidden = shape_.spec.hidden_size;
    const int64_t vocab = shape_.spec.vocab_size;
    Add(TensorRole::kEmbedding, {vocab, hidden});
    if (!shape_.spec.tied_embedding) {
      Add(TensorRole::kLmHead, {vocab, hidden});
    }
    Add(TensorRole::kFinalNorm, {hidden});
    for (int l = 0; l < shape_.spec.num_layers(); ++l) {
      Attention(l);
      Mlp(l);
    }
    return std::move(tensors_);
  }

 private:
  void Add(TensorRole role, std::vector<int64_t> sizes, int layer = 0,
           int expert = 0) {
    tensors_.push_back({names_(role, layer, expert), std::move(sizes)});
  }

  void Attention(int l) {
    const int64_t hidden = shape_.spec.hidden_size;
    const int64_t q = shape_.q_size(), kv = shape_.kv_size();
    Add(TensorRole::kAttentionNorm, {hidden}, l);
    Add(TensorRole::kMlpNorm, {hidden}, l);
    if (const QkNormSizes norms = QkNormSizesOf(shape_, l); norms.q > 0) {
      Add(TensorRole::kQueryNorm, {norms.q}, l);
      Add(TensorRole::kKeyNorm, {norms.k}, l);
    }
    const auto& attention =
        std::get<GroupedQueryAttention>(shape_.spec.layers[l].attention);
    Add(TensorRole::kQuery, {q, hidden}, l);
    Add(TensorRole::kKey, {kv, hidden}, l);
    Add(TensorRole::kValue, {kv, hidden}, l);
    if (attention.qkv_bias) {
      Add(TensorRole::kQueryBias, {q}, l);
      Add(TensorRole::kKeyBias, {kv}, l);
      Add(TensorRole::kValueBias, {kv}, l);
    }
    if (attention.sinks) Add(TensorRole::kSinks, {attention.q_heads}, l);
    Add(TensorRole::kAttentionOutput, {hidden, q}, l);
    if (attention.output_bias) {
      Add(TensorRole::kAttentionOutputBias, {hidden}, l);
    }
  }

  void Mlp(int l) {
    const int64_t hidden = shape_.spec.hidden_size;
    const LayerSpec& layer = shape_.spec.layers[l];
    if (const DenseMlp* dense = layer.dense()) {
      const int64_t rows = dense->rows;
      Add(TensorRole::kGate, {rows, hidden}, l);
      Add(TensorRole::kUp, {rows, hidden}, l);
      Add(TensorRole::kDown, {hidden, rows}, l);
      return;
    }
    const MoeMlp& moe = *layer.moe();
    const int64_t rows = moe.rows;
    Add(TensorRole::kRouter, {moe.router.num_experts, hidden}, l);
    if (moe.router.bias) {
      Add(TensorRole::kRouterBias, {moe.router.num_experts}, l);
    }
    if (moe.shared.has_value()) {
      Add(TensorRole::kSharedGate, {moe.shared->rows, hidden}, l);
      Add(TensorRole::kSharedUp, {moe.shared->rows, hidden}, l);
      Add(TensorRole::kSharedDown, {hidden, moe.shared->rows}, l);
      Add(TensorRole::kSharedRouter, {1, hidden}, l);
    }
    for (int e = 0; e < moe.router.num_experts; ++e) {
      Add(TensorRole::kExpertGate, {rows, hidden}, l, e);
      Add(TensorRole::kExpertUp, {rows, hidden}, l, e);
      Add(TensorRole::kExpertDown, {hidden, rows}, l, e);
      if (!moe.bias) continue;
      Add(TensorRole::kExpertGateBias, {rows}, l, e);
      Add(TensorRole::kExpertUpBias, {rows}, l, e);
      Add(TensorRole::kExpertDownBias, {hidden}, l, e);
    }
  }

  const ModelShape& shape_;
  const TensorNames names_;
  std::vector<ExpectedTensor> tensors_;
};

class Planner {
 public:
  Planner(const ModelShape& shape, TensorNames names, Rank rank,
          const ExpertsState& state)
      : shape_(shape),
        names_(names),
        rank_(rank),
        state_(state),
        dense_(PlanDense(shape)) {}

  std::vector<PlannedPart> All() && {
    const DecoderSpec& spec = shape_.spec;
    const int hidden = spec.hidden_size;
    Matrix(names_(TensorRole::kEmbedding, 0, 0), spec.vocab_size, hidden,
           dense_.embedding);
    if (!spec.tied_embedding) {
      Matrix(names_(TensorRole::kLmHead, 0, 0), spec.vocab_size, hidden,
             dense_.lm_head);
    }
    Vector(names_(TensorRole::kFinalNorm, 0, 0), hidden, dense_.final_norm);
    int moe_layer = 0;
    for (int l = 0; l < spec.num_layers(); ++l) {
      Attention(l);
      if (const MoeMlp* moe = spec.layers[l].moe()) {
        Moe(l, *moe);
        Slot(l, moe_layer++);
      } else {
        AddMlp({names_(TensorRole::kGate, l, 0), names_(TensorRole::kUp, l, 0),
                names_(TensorRole::kDown, l, 0)},
               spec.layers[l].dense()->rows, shape_.mlp_slice_rows,
               dense_.layers[l].mlp);
      }
    }
    return std::move(parts_);
  }

 private:
  template <class Packing>
  void Add(WeightRegion region, int64_t offset, const Packing& packing,
           std::vector<TensorSlice> sources) {
    parts_.push_back({{region, offset, packing}, std::move(sources)});
  }

  void Vector(const std::string& name, int size, int64_t offset,
              int zeros = 0) {
    Add(WeightRegion::kDense, offset, VectorPacking{size, zeros},
        {{name, MatrixSlice::Whole(1, size)}});
  }

  // A column-parallel matrix, in runs of whole panels.
  void Matrix(const std::string& name, int n, int k, int64_t offset) {
    const int64_t panels =
        std::max<int64_t>(1, kRunElements / (int64_t{kPanelRows} * k));
    const int64_t run = panels * kPanelRows;
    for (int64_t row = 0; row < n; row += run) {
      const int64_t end = std::min<int64_t>(n, row + run);
      Add(WeightRegion::kDense, offset + row * k * int64_t{sizeof(Bf16)},
          MatrixPacking{static_cast<int>(end - row), k},
          {{name, MatrixSlice::RowRange(n, k, row, end)}});
    }
  }

  void Attention(int l) {
    const DenseLayout::Layer& place = dense_.layers[l];
    const int hidden = shape_.spec.hidden_size;
    const int q = shape_.q_size(), kv = shape_.kv_size();
    Vector(names_(TensorRole::kAttentionNorm, l, 0), hidden, place.input_norm);
    Vector(names_(TensorRole::kMlpNorm, l, 0), hidden, place.post_norm);
    if (const QkNormSizes norms = QkNormSizesOf(shape_, l); norms.q > 0) {
      Vector(names_(TensorRole::kQueryNorm, l, 0), norms.q, place.q_norm);
      Vector(names_(TensorRole::kKeyNorm, l, 0), norms.k, place.k_norm);
    }
    // One matrix [q + k + v][hidden]; each of the three is whole panels.
    const int64_t row_bytes = int64_t{hidden} * int64_t{sizeof(Bf16)};
    Matrix(names_(TensorRole::kQuery, l, 0), q, hidden, place.qkv);
    Matrix(names_(TensorRole::kKey, l, 0), kv, hidden,
           place.qkv + q * row_bytes);
    Matrix(names_(TensorRole::kValue, l, 0), kv, hidden,
           place.qkv + (q + kv) * row_bytes);
    AttentionVectors(l);
    Add(WeightRegion::kDense, place.output, RowParallelPacking{hidden, q},
        {{names_(TensorRole::kAttentionOutput, l, 0),
          MatrixSlice::Whole(hidden, q)}});
  }

  void AttentionVectors(int l) {
    const DenseLayout::Layer& place = dense_.layers[l];
    const int q = shape_.q_size(), kv = shape_.kv_size();
    if (place.qkv_bias >= 0) {
      Vector(names_(TensorRole::kQueryBias, l, 0), q, place.qkv_bias);
      Vector(names_(TensorRole::kKeyBias, l, 0), kv,
             place.qkv_bias + int64_t{q} * 4);
      Vector(names_(TensorRole::kValueBias, l, 0), kv,
             place.qkv_bias + (int64_t{q} + kv) * 4);
    }
    if (place.sinks >= 0) {
      Vector(names_(TensorRole::kSinks, l, 0), shape_.attention.num_q_heads,
             place.sinks);
    }
    if (place.output_bias >= 0) {
      Vector(names_(TensorRole::kAttentionOutputBias, l, 0),
             shape_.spec.hidden_size, place.output_bias);
    }
  }

  // The names of an MLP's matrices.
  struct MlpNames {
    std::string gate, up, down;
  };

  // Rows `range` of an expert of `rows` rows: rows of gate and up, columns of
  // down.
  std::vector<TensorSlice> RowsOf(MlpNames names, int rows,
                                  IndexRange range) const {
    const int hidden = shape_.spec.hidden_size;
    const auto by_row =
        MatrixSlice::RowRange(rows, hidden, range.begin, range.end);
    const auto by_col =
        MatrixSlice::ColRange(hidden, rows, range.begin, range.end);
    return {{std::move(names.gate), by_row},
            {std::move(names.up), by_row},
            {std::move(names.down), by_col}};
  }

  // An MLP that all rows go to, in slices.
  void AddMlp(MlpNames names, int rows, int slice, int64_t offset) {
    const int hidden = shape_.spec.hidden_size;
    const int64_t slice_bytes = static_cast<int64_t>(
        ExpertBlock::NumElements(hidden, slice) * sizeof(Bf16));
    Add(WeightRegion::kDense, offset,
        ExpertPacking{hidden, rows, slice, rows / slice, slice_bytes},
        RowsOf(std::move(names), rows, {0, rows}));
  }

  // All of a MoE layer that is dense.
  void Moe(int l, const MoeMlp& moe) {
    const DenseLayout::Layer& place = dense_.layers[l];
    const int hidden = shape_.spec.hidden_size;
    const int experts = moe.router.num_experts;
    Matrix(names_(TensorRole::kRouter, l, 0), experts, hidden, place.router);
    if (moe.router.bias) {
      Vector(names_(TensorRole::kRouterBias, l, 0), experts, place.router_bias);
    }
    if (moe.shared.has_value()) {
      AddMlp({names_(TensorRole::kSharedGate, l, 0),
              names_(TensorRole::kSharedUp, l, 0),
              names_(TensorRole::kSharedDown, l, 0)},
             moe.shared->rows, shape_.shared_slice_rows, place.shared);
      Vector(names_(TensorRole::kSharedRouter, l, 0), hidden,
             place.shared_gate);
    }
    if (!moe.bias) return;
    const int padded = shape_.experts.padded_rows();
    const int64_t rows_bytes = int64_t{padded} * 4;
    for (int e = 0; e < experts; ++e) {
      Vector(names_(TensorRole::kExpertGateBias, l, e), moe.rows,
             place.gate_bias + e * rows_bytes, padded - moe.rows);
      Vector(names_(TensorRole::kExpertUpBias, l, e), moe.rows,
             place.up_bias + e * rows_bytes, padded - moe.rows);
      Vector(names_(TensorRole::kExpertDownBias, l, e), hidden,
             place.down_bias + e * int64_t{hidden} * 4);
    }
  }

  void Slot(int l, int moe_layer) {
    const ExpertShape& experts = shape_.experts;
    const Layout layout = state_.LayoutOf(experts, moe_layer);
    const SlotView view = ViewOf(experts, layout, rank_);
    const int64_t slot =
        state_.SlotOf(experts, moe_layer) * experts.slot_bytes();
    for (int e = 0; e < view.num_experts; ++e) {
      Expert(l, view.first_expert + e, view,
             slot + PieceOffset(experts, layout, e));
    }
  }

  // The pieces of one expert, from `offset` on. Experts and rows that the model
  // does not have are padding.
  void Expert(int l, int expert, const SlotView& view, int64_t offset) {
    const ExpertShape& experts = shape_.experts;
    const int piece_rows = experts.rows_per_block();
    const int model_rows = experts.intermediate_rows;
    const IndexRange range{
        std::min(view.first_row, model_rows),
        std::min(view.first_row + view.num_pieces * piece_rows, model_rows)};
    ExpertPacking packing{shape_.spec.hidden_size, 0, piece_rows,
                          view.num_pieces, experts.block_bytes()};
    std::vector<TensorSlice> sources;
    if (expert < experts.num_experts && range.size() > 0) {
      packing.rows = range.size();
      sources = RowsOf({names_(TensorRole::kExpertGate, l, expert),
                        names_(TensorRole::kExpertUp, l, expert),
                        names_(TensorRole::kExpertDown, l, expert)},
                       model_rows, range);
    }
    Add(WeightRegion::kExperts, offset, packing, std::move(sources));
  }

  const ModelShape& shape_;
  const TensorNames names_;
  const Rank rank_;
  const ExpertsState& state_;
  const DenseLayout dense_;
  std::vector<PlannedPart> parts_;
};

}  // namespace

std::vector<ExpectedTensor> ExpectedTensors(const ModelShape& shape,
                                            TensorNames names) {
  return TensorList(shape, names).All();
}

std::vector<PlannedPart> PlanWeights(const ModelShape& shape, TensorNames names,
                                     Rank rank, const ExpertsState& state) {
  return Planner(shape, names, rank, state).All();
}

}  // namespace moebius
