#include "worker/model/weights.h"

#include <variant>

namespace moebius {
namespace {

constexpr int64_t kAlign = 64;

int64_t Bytes(size_t num_elements) {
  return static_cast<int64_t>(num_elements * sizeof(Bf16));
}

}  // namespace

QkNormSizes QkNormSizesOf(const ModelShape& shape, int layer) {
  using QkNorm = GroupedQueryAttention::QkNorm;
  switch (std::get<GroupedQueryAttention>(shape.spec.layers[layer].attention)
              .qk_norm) {
    case QkNorm::kNone:
      break;
    case QkNorm::kPerHead:
      return {shape.head_dim, shape.head_dim};
    case QkNorm::kWholeRow:
      return {shape.q_size(), shape.kv_size()};
  }
  return {};
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
  const auto floats = [&take](int64_t size) { return take(size * 4); };
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
    if (const QkNormSizes norms = QkNormSizesOf(shape, l); norms.q > 0) {
      layer.q_norm = floats(norms.q);
      layer.k_norm = floats(norms.k);
    }
    const auto& attention =
        std::get<GroupedQueryAttention>(spec.layers[l].attention);
    const int qkv = shape.q_size() + 2 * shape.kv_size();
    layer.qkv = take(Bytes(PackedMatrix::NumElements(qkv, hidden)));
    if (attention.qkv_bias) layer.qkv_bias = floats(qkv);
    if (attention.sinks) layer.sinks = floats(attention.q_heads);
    layer.output =
        take(Bytes(RowParallelMatrix::NumElements(hidden, shape.q_size())));
    if (attention.output_bias) layer.output_bias = floats(hidden);
    if (const MoeMlp* moe = spec.layers[l].moe()) {
      const int64_t experts = moe->router.num_experts;
      layer.router = take(
          Bytes(PackedMatrix::NumElements(moe->router.num_experts, hidden)));
      if (moe->router.bias) layer.router_bias = floats(experts);
      if (moe->bias) {
        layer.gate_bias = floats(experts * shape.experts.padded_rows());
        layer.up_bias = floats(experts * shape.experts.padded_rows());
        layer.down_bias = floats(experts * hidden);
      }
      if (moe->shared.has_value()) {
        layer.shared =
            take(Bytes(ExpertBlock::NumElements(hidden, moe->shared->rows)));
        layer.shared_gate = floats(hidden);
      }
    } else {
      layer.mlp = take(Bytes(
          ExpertBlock::NumElements(hidden, spec.layers[l].dense()->rows)));
    }
  }
  dense.size_bytes = next;
  return dense;
}

}  // namespace moebius
