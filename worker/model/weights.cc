#include "worker/model/weights.h"

#include <variant>

namespace moebius {
namespace {

constexpr int64_t kAlign = 64;

int64_t Bytes(size_t num_elements) {
  return static_cast<int64_t>(num_elements * sizeof(Bf16));
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

}  // namespace moebius
