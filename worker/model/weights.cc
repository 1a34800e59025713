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

std::string LayerName(int layer, const char* tensor) {
  return absl::StrCat("model.layers.", layer, ".", tensor, ".weight");
}
std::string ExpertName(int layer, int expert, const char* matrix) {
  return absl::StrCat("model.layers.", layer, ".mlp.experts.", expert, ".",
                      matrix, ".weight");
}

// Every tensor of the model is there, in its shape.
absl::Status CheckTensors(const ModelShape& shape, TensorSource& source) {
  const ModelConfig& config = shape.config;
  const int64_t hidden = config.hidden_size;
  const int64_t q = shape.q_size(), kv = shape.kv_size();
  RETURN_IF_ERROR(source.Check("model.embed_tokens.weight",
                               {int64_t{config.vocab_size}, hidden}));
  if (!config.tie_word_embeddings) {
    RETURN_IF_ERROR(
        source.Check("lm_head.weight", {int64_t{config.vocab_size}, hidden}));
  }
  RETURN_IF_ERROR(source.Check("model.norm.weight", {hidden}));
  for (int l = 0; l < config.num_layers; ++l) {
    const auto check = [&](const char* tensor,
                           absl::Span<const int64_t> sizes) {
      return source.Check(LayerName(l, tensor), sizes);
    };
    const int64_t head[] = {config.head_dim};
    const int64_t vector[] = {hidden};
    RETURN_IF_ERROR(check("input_layernorm", vector));
    RETURN_IF_ERROR(check("post_attention_layernorm", vector));
    RETURN_IF_ERROR(check("self_attn.q_norm", head));
    RETURN_IF_ERROR(check("self_attn.k_norm", head));
    RETURN_IF_ERROR(check("self_attn.q_proj", {q, hidden}));
    RETURN_IF_ERROR(check("self_attn.k_proj", {kv, hidden}));
    RETURN_IF_ERROR(check("self_attn.v_proj", {kv, hidden}));
    RETURN_IF_ERROR(check("self_attn.o_proj", {hidden, q}));
    if (!config.is_moe_layer[l]) {
      const int64_t rows = config.intermediate_size;
      RETURN_IF_ERROR(check("mlp.gate_proj", {rows, hidden}));
      RETURN_IF_ERROR(check("mlp.up_proj", {rows, hidden}));
      RETURN_IF_ERROR(check("mlp.down_proj", {hidden, rows}));
      continue;
    }
    RETURN_IF_ERROR(check("mlp.gate", {int64_t{config.num_experts}, hidden}));
    const int64_t rows = config.moe_intermediate_size;
    for (int e = 0; e < config.num_experts; ++e) {
      RETURN_IF_ERROR(
          source.Check(ExpertName(l, e, "gate_proj"), {rows, hidden}));
      RETURN_IF_ERROR(
          source.Check(ExpertName(l, e, "up_proj"), {rows, hidden}));
      RETURN_IF_ERROR(
          source.Check(ExpertName(l, e, "down_proj"), {hidden, rows}));
    }
  }
  return absl::OkStatus();
}

// Reads, packs and counts.
class Loader {
 public:
  Loader(const ModelShape& shape, TensorSource& source,
         const LoadTarget& target, const LoadProgress& progress)
      : shape_(shape),
        source_(source),
        target_(target),
        progress_(progress),
        dense_(PlanDense(shape)),
        total_bytes_(dense_.size_bytes + shape.experts.slot_bytes() *
                                             shape.experts.num_moe_layers) {}

  absl::StatusOr<LoadStats> Run() {
    const ModelConfig& config = shape_.config;
    const int hidden = config.hidden_size;
    RETURN_IF_ERROR(Matrix("model.embed_tokens.weight", config.vocab_size,
                           hidden, At(dense_.embedding)));
    if (!config.tie_word_embeddings) {
      RETURN_IF_ERROR(Matrix("lm_head.weight", config.vocab_size, hidden,
                             At(dense_.lm_head)));
    }
    RETURN_IF_ERROR(Vector("model.norm.weight", hidden, dense_.final_norm));
    int moe_layer = 0;
    for (int l = 0; l < config.num_layers; ++l) {
      RETURN_IF_ERROR(Attention(l));
      if (config.is_moe_layer[l]) {
        RETURN_IF_ERROR(Matrix(LayerName(l, "mlp.gate"), config.num_experts,
                               hidden, At(dense_.layers[l].router)));
        RETURN_IF_ERROR(Slot(l, moe_layer++));
      } else {
        RETURN_IF_ERROR(DenseMlp(l));
      }
    }
    return LoadStats{source_.bytes_read(), written_bytes_};
  }

 private:
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
    const ModelConfig& config = shape_.config;
    const DenseLayout::Layer& place = dense_.layers[l];
    const int hidden = config.hidden_size;
    const int q = shape_.q_size(), kv = shape_.kv_size();
    RETURN_IF_ERROR(
        Vector(LayerName(l, "input_layernorm"), hidden, place.input_norm));
    RETURN_IF_ERROR(Vector(LayerName(l, "post_attention_layernorm"), hidden,
                           place.post_norm));
    RETURN_IF_ERROR(Vector(LayerName(l, "self_attn.q_norm"), config.head_dim,
                           place.q_norm));
    RETURN_IF_ERROR(Vector(LayerName(l, "self_attn.k_norm"), config.head_dim,
                           place.k_norm));
    Bf16* qkv = At(place.qkv);
    const size_t h = static_cast<size_t>(hidden);
    RETURN_IF_ERROR(Matrix(LayerName(l, "self_attn.q_proj"), q, hidden, qkv));
    qkv += static_cast<size_t>(q) * h;
    RETURN_IF_ERROR(Matrix(LayerName(l, "self_attn.k_proj"), kv, hidden, qkv));
    qkv += static_cast<size_t>(kv) * h;
    RETURN_IF_ERROR(Matrix(LayerName(l, "self_attn.v_proj"), kv, hidden, qkv));

    Bf16* w = nullptr;
    RETURN_IF_ERROR(Read(0, LayerName(l, "self_attn.o_proj"),
                         MatrixSlice::Whole(hidden, q), &w));
    PackRowParallel(w, hidden, q, q, At(place.output));
    Wrote(Bytes(RowParallelMatrix::NumElements(hidden, q)));
    return absl::OkStatus();
  }

  // Rows [begin, end) of gate and up, columns [begin, end) of down, into the
  // three buffers.
  absl::Status ReadExpert(const std::string& gate, const std::string& up,
                          const std::string& down, int rows, IndexRange range) {
    const int hidden = shape_.config.hidden_size;
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
    const int hidden = shape_.config.hidden_size;
    const int rows = shape_.config.intermediate_size;
    const int slice = shape_.mlp_slice_rows;
    RETURN_IF_ERROR(ReadExpert(LayerName(l, "mlp.gate_proj"),
                               LayerName(l, "mlp.up_proj"),
                               LayerName(l, "mlp.down_proj"), rows, {0, rows}));
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
      RETURN_IF_ERROR(ReadExpert(ExpertName(l, expert, "gate_proj"),
                                 ExpertName(l, expert, "up_proj"),
                                 ExpertName(l, expert, "down_proj"),
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
    const int hidden = shape_.config.hidden_size;
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
  const ModelConfig& config = shape.config;
  const int hidden = config.hidden_size;
  int64_t next = 0;
  const auto take = [&next](int64_t bytes) {
    const int64_t at = next;
    next += (bytes + kAlign - 1) / kAlign * kAlign;
    return at;
  };
  DenseLayout dense;
  const int64_t table =
      Bytes(PackedMatrix::NumElements(config.vocab_size, hidden));
  dense.embedding = take(table);
  dense.lm_head = config.tie_word_embeddings ? dense.embedding : take(table);
  dense.final_norm = take(int64_t{hidden} * 4);
  dense.layers.resize(config.num_layers);
  for (int l = 0; l < config.num_layers; ++l) {
    DenseLayout::Layer& layer = dense.layers[l];
    layer.input_norm = take(int64_t{hidden} * 4);
    layer.post_norm = take(int64_t{hidden} * 4);
    layer.q_norm = take(int64_t{config.head_dim} * 4);
    layer.k_norm = take(int64_t{config.head_dim} * 4);
    layer.qkv = take(Bytes(PackedMatrix::NumElements(
        shape.q_size() + 2 * shape.kv_size(), hidden)));
    layer.output =
        take(Bytes(RowParallelMatrix::NumElements(hidden, shape.q_size())));
    if (config.is_moe_layer[l]) {
      layer.router =
          take(Bytes(PackedMatrix::NumElements(config.num_experts, hidden)));
    } else {
      layer.mlp = take(
          Bytes(ExpertBlock::NumElements(hidden, config.intermediate_size)));
    }
  }
  dense.size_bytes = next;
  return dense;
}

DenseWeights ViewDense(const ModelShape& shape, const std::byte* dense) {
  CHECK(Aligned(dense));
  const ModelConfig& config = shape.config;
  const int hidden = config.hidden_size;
  const DenseLayout plan = PlanDense(shape);
  const auto at = [dense](int64_t offset) {
    return reinterpret_cast<const Bf16*>(dense + offset);
  };
  const auto floats = [dense](int64_t offset, int size) {
    return absl::MakeConstSpan(reinterpret_cast<const float*>(dense + offset),
                               static_cast<size_t>(size));
  };
  DenseWeights weights;
  weights.embedding = {at(plan.embedding), config.vocab_size, hidden};
  weights.lm_head = {at(plan.lm_head), config.vocab_size, hidden};
  weights.final_norm = floats(plan.final_norm, hidden);
  weights.layers.resize(config.num_layers);
  for (int l = 0; l < config.num_layers; ++l) {
    const DenseLayout::Layer& place = plan.layers[l];
    DenseWeights::Layer& layer = weights.layers[l];
    layer.input_norm = floats(place.input_norm, hidden);
    layer.post_norm = floats(place.post_norm, hidden);
    layer.q_norm = floats(place.q_norm, config.head_dim);
    layer.k_norm = floats(place.k_norm, config.head_dim);
    layer.qkv = {at(place.qkv), shape.q_size() + 2 * shape.kv_size(), hidden};
    layer.output = {at(place.output), hidden, shape.q_size()};
    if (config.is_moe_layer[l]) {
      layer.router = {at(place.router), config.num_experts, hidden};
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
    experts[e] = {reinterpret_cast<const Bf16*>(first),
                  shape.config.hidden_size, experts_shape.rows_per_block(),
                  view.num_pieces,
                  static_cast<ptrdiff_t>(experts_shape.block_bytes() /
                                         int64_t{sizeof(Bf16)})};
  }
  return experts;
}

absl::StatusOr<LoadStats> LoadWeights(const ModelShape& shape,
                                      TensorSource& source,
                                      const LoadTarget& target,
                                      const LoadProgress& progress) {
  CHECK(target.rank >= 0 && target.rank < shape.num_ranks);
  CHECK(Validate(target.state, shape.experts).ok());
  CHECK(target.dense != nullptr && Aligned(target.dense));
  CHECK(shape.experts.num_moe_layers == 0 ||
        (target.experts != nullptr && Aligned(target.experts)));
  RETURN_IF_ERROR(CheckTensors(shape, source));
  return Loader(shape, source, target, progress).Run();
}

absl::StatusOr<LoadStats> LoadWeights(const ModelShape& shape,
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
  return LoadWeights(shape, *source, target, progress);
}

}  // namespace moebius
