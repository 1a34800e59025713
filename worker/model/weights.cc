#include "worker/model/weights.h"

#include <variant>

#include "common/base/check.h"

namespace moebius {
namespace {

constexpr int64_t kAlign = 64;

int64_t Bytes(size_t num_elements) {
  return static_cast<int64_t>(num_elements * sizeof(Bf16));
}

bool Aligned(const std::byte* base) {
  return reinterpret_cast<uintptr_t>(base) % kAlign == 0;
}

}  // namespace

bool HasQkNorm(const LayerSpec& layer) {
  return std::get<GroupedQueryAttention>(layer.attention).qk_norm !=
         GroupedQueryAttention::QkNorm::kNone;
}

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

}  // namespace moebius
