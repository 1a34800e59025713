#include "worker/model/weights.h"

#include <algorithm>
#include <cstring>
#include <memory>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "common/base/check.h"
#include "common/base/status_macros.h"
#include "worker/model/safetensors.h"

namespace moebius {
namespace {

constexpr int64_t kAlign = 64;
// Of the largest matrix that is read at once, unless a panel is larger.
constexpr int64_t kChunkElements = 4 << 20;

int64_t Bytes(size_t num_elements) {
  return static_cast<int64_t>(num_elements * sizeof(Bf16));
}

bool HasQkNorm(const LayerSpec& layer) {
  return std::get<GroupedQueryAttention>(layer.attention).qk_norm !=
         GroupedQueryAttention::QkNorm::kNone;
}

// Checks that tensors are there, in their shapes.
class TensorCheck {
 public:
  TensorCheck(const ModelShape& shape, TensorNames names, TensorSource& source)
      : shape_(shape), names_(names), source_(source) {}

  absl::Status All() {
    const int64_t hidden = shape_.spec.hidden_size;
    const int64_t table[] = {shape_.spec.vocab_size, hidden};
    RETURN_IF_ERROR(Has(TensorRole::kEmbedding, table));
    if (!shape_.spec.tied_embedding) {
      RETURN_IF_ERROR(Has(TensorRole::kLmHead, table));
    }
    RETURN_IF_ERROR(Has(TensorRole::kFinalNorm, {hidden}));
    for (int l = 0; l < shape_.spec.num_layers(); ++l) {
      RETURN_IF_ERROR(Attention(l));
      RETURN_IF_ERROR(Mlp(l));
    }
    return absl::OkStatus();
  }

 private:
  absl::Status Has(TensorRole role, absl::Span<const int64_t> sizes,
                   int layer = 0, int expert = 0) {
    return source_.Check(names_(role, layer, expert), sizes);
  }

  absl::Status Attention(int l) {
    const int64_t hidden = shape_.spec.hidden_size;
    const int64_t q = shape_.q_size(), kv = shape_.kv_size();
    RETURN_IF_ERROR(Has(TensorRole::kAttentionNorm, {hidden}, l));
    RETURN_IF_ERROR(Has(TensorRole::kMlpNorm, {hidden}, l));
    if (HasQkNorm(shape_.spec.layers[l])) {
      RETURN_IF_ERROR(Has(TensorRole::kQueryNorm, {shape_.head_dim}, l));
      RETURN_IF_ERROR(Has(TensorRole::kKeyNorm, {shape_.head_dim}, l));
    }
    RETURN_IF_ERROR(Has(TensorRole::kQuery, {q, hidden}, l));
    RETURN_IF_ERROR(Has(TensorRole::kKey, {kv, hidden}, l));
    RETURN_IF_ERROR(Has(TensorRole::kValue, {kv, hidden}, l));
    return Has(TensorRole::kAttentionOutput, {hidden, q}, l);
  }

  absl::Status Mlp(int l) {
    const int64_t hidden = shape_.spec.hidden_size;
    const LayerSpec& layer = shape_.spec.layers[l];
    if (const DenseMlp* dense = layer.dense()) {
      const int64_t rows = dense->rows;
      RETURN_IF_ERROR(Has(TensorRole::kGate, {rows, hidden}, l));
      RETURN_IF_ERROR(Has(TensorRole::kUp, {rows, hidden}, l));
      return Has(TensorRole::kDown, {hidden, rows}, l);
    }
    const MoeMlp& moe = *layer.moe();
    const int64_t rows = moe.rows, experts = moe.router.num_experts;
    RETURN_IF_ERROR(Has(TensorRole::kRouter, {experts, hidden}, l));
    for (int e = 0; e < experts; ++e) {
      RETURN_IF_ERROR(Has(TensorRole::kExpertGate, {rows, hidden}, l, e));
      RETURN_IF_ERROR(Has(TensorRole::kExpertUp, {rows, hidden}, l, e));
      RETURN_IF_ERROR(Has(TensorRole::kExpertDown, {hidden, rows}, l, e));
    }
    return absl::OkStatus();
  }

  const ModelShape& shape_;
  const TensorNames names_;
  TensorSource& source_;
};

// Reads, packs and counts.
class Loader {
 public:
  Loader(const ModelShape& shape, TensorNames names, TensorSource& source,
         const LoadTarget& target, const LoadProgress& progress)
      : shape_(shape),
        names_(names),
        source_(source),
        target_(target),
        progress_(progress),
        dense_(PlanDense(shape)),
        total_bytes_(dense_.size_bytes + shape.experts.slot_bytes() *
                                             shape.experts.num_moe_layers) {}

  absl::StatusOr<LoadStats> Run() {
    const DecoderSpec& spec = shape_.spec;
    const int hidden = spec.hidden_size;
    RETURN_IF_ERROR(Matrix(Name(TensorRole::kEmbedding), spec.vocab_size,
                           hidden, At(dense_.embedding)));
    if (!spec.tied_embedding) {
      RETURN_IF_ERROR(Matrix(Name(TensorRole::kLmHead), spec.vocab_size, hidden,
                             At(dense_.lm_head)));
    }
    RETURN_IF_ERROR(
        Vector(Name(TensorRole::kFinalNorm), hidden, dense_.final_norm));
    int moe_layer = 0;
    for (int l = 0; l < spec.num_layers(); ++l) {
      RETURN_IF_ERROR(Attention(l));
      if (const MoeMlp* moe = spec.layers[l].moe()) {
        RETURN_IF_ERROR(Matrix(Name(TensorRole::kRouter, l),
                               moe->router.num_experts, hidden,
                               At(dense_.layers[l].router)));
        RETURN_IF_ERROR(Slot(l, moe_layer++));
      } else {
        RETURN_IF_ERROR(DenseMlp(l));
      }
    }
    return LoadStats{source_.bytes_read(), written_bytes_};
  }

 private:
  std::string Name(TensorRole role, int layer = 0, int expert = 0) const {
    return names_(role, layer, expert);
  }

  Bf16* At(int64_t offset) const {
    return reinterpret_cast<Bf16*>(target_.dense + offset);
  }

  Bf16* Buffer(int which, int64_t elements) {
    if (static_cast<int64_t>(buffers_[which].size()) < elements) {
      buffers_[which].resize(static_cast<size_t>(elements));
    }
    return buffers_[which].data();
  }

  absl::Status Read(int which, const std::string& name, MatrixSlice slice,
                    Bf16** data) {
    *data = Buffer(which, slice.num_elements());
    return source_.ReadBf16(
        name, slice,
        absl::MakeSpan(*data, static_cast<size_t>(slice.num_elements())));
  }

  void Wrote(int64_t bytes) {
    written_bytes_ += bytes;
    if (progress_)
      progress_(std::min(written_bytes_, total_bytes_), total_bytes_);
  }

  // A column-parallel matrix, in runs of whole panels.
  absl::Status Matrix(const std::string& name, int n, int k, Bf16* out) {
    const int64_t panels =
        std::max<int64_t>(1, kChunkElements / (int64_t{kPanelRows} * k));
    const int64_t step = panels * kPanelRows;
    for (int64_t row = 0; row < n; row += step) {
      const int64_t end = std::min<int64_t>(n, row + step);
      Bf16* w = nullptr;
      RETURN_IF_ERROR(Read(0, name, MatrixSlice::RowRange(n, k, row, end), &w));
      PackMatrix(w, static_cast<int>(end - row), k, k, out + row * k);
      Wrote(Bytes(PackedMatrix::NumElements(static_cast<int>(end - row), k)));
    }
    return absl::OkStatus();
  }

  absl::Status Vector(const std::string& name, int size, int64_t offset) {
    float* out = reinterpret_cast<float*>(target_.dense + offset);
    RETURN_IF_ERROR(source_.ReadFloat(
        name, absl::MakeSpan(out, static_cast<size_t>(size))));
    Wrote(int64_t{size} * 4);
    return absl::OkStatus();
  }

  absl::Status Attention(int l) {
    const DenseLayout::Layer& place = dense_.layers[l];
    const int hidden = shape_.spec.hidden_size;
    const int q = shape_.q_size(), kv = shape_.kv_size();
    RETURN_IF_ERROR(
        Vector(Name(TensorRole::kAttentionNorm, l), hidden, place.input_norm));
    RETURN_IF_ERROR(
        Vector(Name(TensorRole::kMlpNorm, l), hidden, place.post_norm));
    if (HasQkNorm(shape_.spec.layers[l])) {
      RETURN_IF_ERROR(Vector(Name(TensorRole::kQueryNorm, l), shape_.head_dim,
                             place.q_norm));
      RETURN_IF_ERROR(
          Vector(Name(TensorRole::kKeyNorm, l), shape_.head_dim, place.k_norm));
    }
    Bf16* qkv = At(place.qkv);
    const size_t h = static_cast<size_t>(hidden);
    RETURN_IF_ERROR(Matrix(Name(TensorRole::kQuery, l), q, hidden, qkv));
    qkv += static_cast<size_t>(q) * h;
    RETURN_IF_ERROR(Matrix(Name(TensorRole::kKey, l), kv, hidden, qkv));
    qkv += static_cast<size_t>(kv) * h;
    RETURN_IF_ERROR(Matrix(Name(TensorRole::kValue, l), kv, hidden, qkv));

    Bf16* w = nullptr;
    RETURN_IF_ERROR(Read(0, Name(TensorRole::kAttentionOutput, l),
                         MatrixSlice::Whole(hidden, q), &w));
    PackRowParallel(w, hidden, q, q, At(place.output));
    Wrote(Bytes(RowParallelMatrix::NumElements(hidden, q)));
    return absl::OkStatus();
  }

  // Rows [begin, end) of gate and up, columns [begin, end) of down, into the
  // three buffers.
  absl::Status ReadExpert(const std::string& gate, const std::string& up,
                          const std::string& down, int rows, IndexRange range) {
    const int hidden = shape_.spec.hidden_size;
    const auto by_row =
        MatrixSlice::RowRange(rows, hidden, range.begin, range.end);
    const auto by_col =
        MatrixSlice::ColRange(hidden, rows, range.begin, range.end);
    Bf16* unused = nullptr;
    RETURN_IF_ERROR(Read(0, gate, by_row, &unused));
    RETURN_IF_ERROR(Read(1, up, by_row, &unused));
    return Read(2, down, by_col, &unused);
  }

  absl::Status DenseMlp(int l) {
    const int hidden = shape_.spec.hidden_size;
    const int rows = shape_.spec.layers[l].dense()->rows;
    const int slice = shape_.mlp_slice_rows;
    RETURN_IF_ERROR(ReadExpert(Name(TensorRole::kGate, l),
                               Name(TensorRole::kUp, l),
                               Name(TensorRole::kDown, l), rows, {0, rows}));
    Bf16* out = At(dense_.layers[l].mlp);
    for (int begin = 0; begin < rows; begin += slice) {
      PackExpert(buffers_[0].data(), buffers_[1].data(), buffers_[2].data(),
                 hidden, rows, begin, begin + slice, out);
      out += ExpertBlock::NumElements(hidden, slice);
    }
    Wrote(Bytes(ExpertBlock::NumElements(hidden, rows)));
    return absl::OkStatus();
  }

  absl::Status Slot(int l, int moe_layer) {
    const ExpertShape& experts = shape_.experts;
    const Layout layout = target_.state.LayoutOf(experts, moe_layer);
    const SlotView view = ViewOf(experts, layout, target_.rank);
    std::byte* const slot =
        target_.experts +
        target_.state.SlotOf(experts, moe_layer) * experts.slot_bytes();
    for (int e = 0; e < view.num_experts; ++e) {
      RETURN_IF_ERROR(Expert(l, view.first_expert + e, view,
                             slot + PieceOffset(experts, layout, e)));
    }
    return absl::OkStatus();
  }

  // The pieces of one expert, from `out` on. What is padding becomes zeros.
  absl::Status Expert(int l, int expert, const SlotView& view, std::byte* out) {
    const ExpertShape& experts = shape_.experts;
    const int rows = experts.rows_per_block();
    const int begin = std::min(view.first_row, experts.intermediate_rows);
    const int end = std::min(view.first_row + view.num_pieces * rows,
                             experts.intermediate_rows);
    const bool there = expert < experts.num_experts && begin < end;
    if (there) {
      RETURN_IF_ERROR(ReadExpert(Name(TensorRole::kExpertGate, l, expert),
                                 Name(TensorRole::kExpertUp, l, expert),
                                 Name(TensorRole::kExpertDown, l, expert),
                                 experts.intermediate_rows, {begin, end}));
    }
    for (int p = 0; p < view.num_pieces; ++p) {
      const int first = p * rows;
      const int count = there ? std::clamp(end - begin - first, 0, rows) : 0;
      PackPiece(end - begin, first, count, out + p * experts.block_bytes());
    }
    Wrote(view.num_pieces * experts.piece_bytes());
    return absl::OkStatus();
  }

  // A piece of rows [first, first + count) of the `num_rows` in the buffers,
  // and zeros.
  void PackPiece(int num_rows, int first, int count, std::byte* out) {
    const int hidden = shape_.spec.hidden_size;
    const int rows = shape_.experts.rows_per_block();
    Bf16* const piece = reinterpret_cast<Bf16*>(out);
    if (count == rows) {
      PackExpert(buffers_[0].data(), buffers_[1].data(), buffers_[2].data(),
                 hidden, num_rows, first, first + count, piece);
      return;
    }
    std::memset(out, 0, static_cast<size_t>(shape_.experts.piece_bytes()));
    if (count == 0) return;
    const size_t size = static_cast<size_t>(rows) * hidden;
    std::vector<Bf16> padded[3] = {std::vector<Bf16>(size),
                                   std::vector<Bf16>(size),
                                   std::vector<Bf16>(size)};
    const size_t bytes = static_cast<size_t>(count) * hidden * sizeof(Bf16);
    const ptrdiff_t at = static_cast<ptrdiff_t>(first) * hidden;
    std::memcpy(padded[0].data(), buffers_[0].data() + at, bytes);
    std::memcpy(padded[1].data(), buffers_[1].data() + at, bytes);
    for (int h = 0; h < hidden; ++h) {
      std::memcpy(
          padded[2].data() + static_cast<ptrdiff_t>(h) * rows,
          buffers_[2].data() + static_cast<ptrdiff_t>(h) * num_rows + first,
          count * sizeof(Bf16));
    }
    PackExpert(padded[0].data(), padded[1].data(), padded[2].data(), hidden,
               rows, 0, rows, piece);
  }

  const ModelShape& shape_;
  const TensorNames names_;
  TensorSource& source_;
  const LoadTarget& target_;
  const LoadProgress& progress_;
  const DenseLayout dense_;
  const int64_t total_bytes_;
  int64_t written_bytes_ = 0;
  std::vector<Bf16> buffers_[3];
};

bool Aligned(const std::byte* base) {
  return reinterpret_cast<uintptr_t>(base) % kAlign == 0;
}

}  // namespace

DenseLayout PlanDense(const ModelShape& shape) {
  const DecoderSpec& spec = shape.spec;
  const int hidden = spec.hidden_size;
  int64_t next = 0;
  const auto take = [&next](int64_t bytes) {
    const int64_t at = next;
    next += (bytes + kAlign - 1) / kAlign * kAlign;
    return at;
  };
  DenseLayout dense;
  const int64_t table =
      Bytes(PackedMatrix::NumElements(spec.vocab_size, hidden));
  dense.embedding = take(table);
  dense.lm_head = spec.tied_embedding ? dense.embedding : take(table);
  dense.final_norm = take(int64_t{hidden} * 4);
  dense.layers.resize(spec.num_layers());
  for (int l = 0; l < spec.num_layers(); ++l) {
    DenseLayout::Layer& layer = dense.layers[l];
    layer.input_norm = take(int64_t{hidden} * 4);
    layer.post_norm = take(int64_t{hidden} * 4);
    if (HasQkNorm(spec.layers[l])) {
      layer.q_norm = take(int64_t{shape.head_dim} * 4);
      layer.k_norm = take(int64_t{shape.head_dim} * 4);
    }
    layer.qkv = take(Bytes(PackedMatrix::NumElements(
        shape.q_size() + 2 * shape.kv_size(), hidden)));
    layer.output =
        take(Bytes(RowParallelMatrix::NumElements(hidden, shape.q_size())));
    if (const MoeMlp* moe = spec.layers[l].moe()) {
      layer.router = take(
          Bytes(PackedMatrix::NumElements(moe->router.num_experts, hidden)));
    } else {
      layer.mlp = take(Bytes(
          ExpertBlock::NumElements(hidden, spec.layers[l].dense()->rows)));
    }
  }
  dense.size_bytes = next;
  return dense;
}

DenseWeights ViewDense(const ModelShape& shape, const std::byte* dense) {
  CHECK(Aligned(dense));
  const DecoderSpec& spec = shape.spec;
  const int hidden = spec.hidden_size;
  const DenseLayout plan = PlanDense(shape);
  const auto at = [dense](int64_t offset) {
    return reinterpret_cast<const Bf16*>(dense + offset);
  };
  const auto floats = [dense](int64_t offset, int size) {
    return absl::MakeConstSpan(reinterpret_cast<const float*>(dense + offset),
                               static_cast<size_t>(size));
  };
  DenseWeights weights;
  weights.embedding = {at(plan.embedding), spec.vocab_size, hidden};
  weights.lm_head = {at(plan.lm_head), spec.vocab_size, hidden};
  weights.final_norm = floats(plan.final_norm, hidden);
  weights.layers.resize(spec.num_layers());
  for (int l = 0; l < spec.num_layers(); ++l) {
    const DenseLayout::Layer& place = plan.layers[l];
    DenseWeights::Layer& layer = weights.layers[l];
    layer.input_norm = floats(place.input_norm, hidden);
    layer.post_norm = floats(place.post_norm, hidden);
    if (HasQkNorm(spec.layers[l])) {
      layer.q_norm = floats(place.q_norm, shape.head_dim);
      layer.k_norm = floats(place.k_norm, shape.head_dim);
    }
    layer.qkv = {at(place.qkv), shape.q_size() + 2 * shape.kv_size(), hidden};
    layer.output = {at(place.output), hidden, shape.q_size()};
    if (const MoeMlp* moe = spec.layers[l].moe()) {
      layer.router = {at(place.router), moe->router.num_experts, hidden};
      continue;
    }
    layer.mlp = {at(place.mlp), hidden, shape.mlp_slice_rows,
                 shape.num_mlp_slices,
                 static_cast<ptrdiff_t>(
                     ExpertBlock::NumElements(hidden, shape.mlp_slice_rows))};
  }
  return weights;
}

std::vector<ExpertView> ViewSlot(const ModelShape& shape, Layout layout,
                                 const std::byte* slot) {
  CHECK(Aligned(slot));
  const ExpertShape& experts_shape = shape.experts;
  const SlotView view = ViewOf(experts_shape, layout, 0);
  std::vector<ExpertView> experts(static_cast<size_t>(view.num_experts));
  for (int e = 0; e < view.num_experts; ++e) {
    const std::byte* const first = slot + PieceOffset(experts_shape, layout, e);
    experts[e] = {reinterpret_cast<const Bf16*>(first), shape.spec.hidden_size,
                  experts_shape.rows_per_block(), view.num_pieces,
                  static_cast<ptrdiff_t>(experts_shape.block_bytes() /
                                         int64_t{sizeof(Bf16)})};
  }
  return experts;
}

absl::StatusOr<LoadStats> LoadWeights(const ModelShape& shape,
                                      TensorNames names, TensorSource& source,
                                      const LoadTarget& target,
                                      const LoadProgress& progress) {
  CHECK(target.rank >= 0 && target.rank < shape.num_ranks);
  CHECK(Validate(target.state, shape.experts).ok());
  CHECK(target.dense != nullptr && Aligned(target.dense));
  CHECK(shape.experts.num_moe_layers == 0 ||
        (target.experts != nullptr && Aligned(target.experts)));
  RETURN_IF_ERROR(TensorCheck(shape, names, source).All());
  return Loader(shape, names, source, target, progress).Run();
}

absl::StatusOr<LoadStats> LoadWeights(const ModelShape& shape,
                                      TensorNames names,
                                      const std::string& model_dir,
                                      bool dummy_weights,
                                      const LoadTarget& target,
                                      const LoadProgress& progress) {
  std::unique_ptr<TensorSource> source;
  if (dummy_weights) {
    source = MakeDummyWeights();
  } else {
    ASSIGN_OR_RETURN(source, Checkpoint::Open(model_dir));
  }
  return LoadWeights(shape, names, *source, target, progress);
}

}  // namespace moebius
