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
    if (HasQkNorm(shape_.spec.layers[l])) {
      Add(TensorRole::kQueryNorm, {shape_.head_dim}, l);
      Add(TensorRole::kKeyNorm, {shape_.head_dim}, l);
    }
    Add(TensorRole::kQuery, {q, hidden}, l);
    Add(TensorRole::kKey, {kv, hidden}, l);
    Add(TensorRole::kValue, {kv, hidden}, l);
    Add(TensorRole::kAttentionOutput, {hidden, q}, l);
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
    for (int e = 0; e < moe.router.num_experts; ++e) {
      Add(TensorRole::kExpertGate, {rows, hidden}, l, e);
      Add(TensorRole::kExpertUp, {rows, hidden}, l, e);
      Add(TensorRole::kExpertDown, {hidden, rows}, l, e);
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
        Matrix(names_(TensorRole::kRouter, l, 0), moe->router.num_experts,
               hidden, dense_.layers[l].router);
        Slot(l, moe_layer++);
      } else {
        Mlp(l, spec.layers[l].dense()->rows);
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

  void Vector(const std::string& name, int size, int64_t offset) {
    Add(WeightRegion::kDense, offset, VectorPacking{size},
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
    if (HasQkNorm(shape_.spec.layers[l])) {
      Vector(names_(TensorRole::kQueryNorm, l, 0), shape_.head_dim,
             place.q_norm);
      Vector(names_(TensorRole::kKeyNorm, l, 0), shape_.head_dim, place.k_norm);
    }
    // One matrix [q + k + v][hidden]; each of the three is whole panels.
    const int64_t row_bytes = int64_t{hidden} * int64_t{sizeof(Bf16)};
    Matrix(names_(TensorRole::kQuery, l, 0), q, hidden, place.qkv);
    Matrix(names_(TensorRole::kKey, l, 0), kv, hidden,
           place.qkv + q * row_bytes);
    Matrix(names_(TensorRole::kValue, l, 0), kv, hidden,
           place.qkv + (q + kv) * row_bytes);
    Add(WeightRegion::kDense, place.output, RowParallelPacking{hidden, q},
        {{names_(TensorRole::kAttentionOutput, l, 0),
          MatrixSlice::Whole(hidden, q)}});
  }

  // Rows `range` of an expert of `rows` rows: rows of gate and up, columns of
  // down.
  std::vector<TensorSlice> RowsOf(std::string gate, std::string up,
                                  std::string down, int rows,
                                  IndexRange range) const {
    const int hidden = shape_.spec.hidden_size;
    const auto by_row =
        MatrixSlice::RowRange(rows, hidden, range.begin, range.end);
    const auto by_col =
        MatrixSlice::ColRange(hidden, rows, range.begin, range.end);
    return {{std::move(gate), by_row},
            {std::move(up), by_row},
            {std::move(down), by_col}};
  }

  void Mlp(int l, int rows) {
    const int hidden = shape_.spec.hidden_size;
    const int slice = shape_.mlp_slice_rows;
    const int64_t slice_bytes = static_cast<int64_t>(
        ExpertBlock::NumElements(hidden, slice) * sizeof(Bf16));
    Add(WeightRegion::kDense, dense_.layers[l].mlp,
        ExpertPacking{hidden, rows, slice, rows / slice, slice_bytes},
        RowsOf(names_(TensorRole::kGate, l, 0), names_(TensorRole::kUp, l, 0),
               names_(TensorRole::kDown, l, 0), rows, {0, rows}));
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
      sources =
          RowsOf(names_(TensorRole::kExpertGate, l, expert),
                 names_(TensorRole::kExpertUp, l, expert),
                 names_(TensorRole::kExpertDown, l, expert), model_rows, range);
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
