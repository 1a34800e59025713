// A rank's weights as the operators of a device take them: views into its
// regions, where weights.h says that they are.
#pragma once

#include <cstddef>
#include <vector>

#include "common/layout/blocks.h"
#include "kernels/formats.h"
#include "worker/model/model_shape.h"
#include "worker/model/weights.h"

namespace moebius {

template <class D>
struct DenseWeights {
  struct Layer {
    const float* input_norm = nullptr;  // [hidden]
    const float* post_norm = nullptr;   // [hidden], after attention
    const float* q_norm = nullptr;      // [head_dim]; null without QK-norm
    const float* k_norm = nullptr;      // the same
    ColumnParallel<D> qkv;
    RowParallel<D> output;
    ColumnParallel<D> router;  // MoE layers
    ExpertSlot<D> mlp;         // dense layers: one expert, a piece a slice
  };
  ColumnParallel<D> embedding, lm_head;
  const float* final_norm = nullptr;  // [hidden]
  std::vector<Layer> layers;
};

// `dense`: base of the region, a multiple of 64.
template <class D>
DenseWeights<D> ViewDense(const ModelShape& shape, const std::byte* dense) {
  const DecoderSpec& spec = shape.spec;
  const int hidden = spec.hidden_size;
  const DenseLayout plan = PlanDense(shape);
  const auto at = [dense](int64_t offset) {
    return reinterpret_cast<const Bf16*>(dense + offset);
  };
  const auto floats = [dense](int64_t offset) {
    return reinterpret_cast<const float*>(dense + offset);
  };
  DenseWeights<D> weights;
  weights.embedding = {at(plan.embedding), spec.vocab_size, hidden};
  weights.lm_head = {at(plan.lm_head), spec.vocab_size, hidden};
  weights.final_norm = floats(plan.final_norm);
  weights.layers.resize(spec.num_layers());
  for (int l = 0; l < spec.num_layers(); ++l) {
    const DenseLayout::Layer& place = plan.layers[l];
    typename DenseWeights<D>::Layer& layer = weights.layers[l];
    layer.input_norm = floats(place.input_norm);
    layer.post_norm = floats(place.post_norm);
    if (place.q_norm >= 0) layer.q_norm = floats(place.q_norm);
    if (place.k_norm >= 0) layer.k_norm = floats(place.k_norm);
    layer.qkv = {at(place.qkv), shape.q_size() + 2 * shape.kv_size(), hidden};
    layer.output = {at(place.output), hidden, shape.q_size()};
    if (const MoeMlp* moe = spec.layers[l].moe()) {
      layer.router = {at(place.router), moe->router.num_experts, hidden};
      continue;
    }
    layer.mlp = {.data = at(place.mlp),
                 .hidden = hidden,
                 .rows = shape.mlp_slice_rows,
                 .num_pieces = shape.num_mlp_slices,
                 .piece_stride = static_cast<ptrdiff_t>(
                     ExpertBlock::NumElements(hidden, shape.mlp_slice_rows)),
                 .num_experts = 1,
                 .experts_per_block = 1};
  }
  return weights;
}

// The experts of one slot, padding among them. `slot`: a multiple of 64.
template <class D>
ExpertSlot<D> ViewSlot(const ModelShape& shape, Layout layout,
                       const std::byte* slot) {
  const ExpertShape& experts = shape.experts;
  const SlotView view = ViewOf(experts, layout, 0);
  return {.data = reinterpret_cast<const Bf16*>(slot),
          .hidden = shape.spec.hidden_size,
          .rows = experts.rows_per_block(),
          .num_pieces = view.num_pieces,
          .piece_stride = static_cast<ptrdiff_t>(experts.block_bytes() /
                                                 int64_t{sizeof(Bf16)}),
          .num_experts = view.num_experts,
          .experts_per_block = experts.experts_per_block()};
}

}  // namespace moebius
